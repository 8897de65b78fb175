"""Facts about this machine that OCI specs depend on; gathered once, or per device asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sandboxd.errors import InvalidRequest
from sandboxd.oci.linux import Device, HostFacts
from sandboxd.pb.cri.v1 import api_pb2 as cri
