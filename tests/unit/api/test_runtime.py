"""RuntimeService: no RPC is left to the generated base class, which knows no answer."""

import pytest

from sandboxd.api.runtime import RuntimeService
from sandboxd.pb.cri.v1 import api_pb2, api_pb2_grpc

CALLS = [method.name for method in api_pb2.DESCRIPTOR.services_by_name["RuntimeService"].methods]


@pytest.mark.parametrize("name", CALLS)
def test_every_call_of_cri_has_a_method_of_ours(name: str) -> None:
    assert getattr(RuntimeService, name) is not getattr(api_pb2_grpc.RuntimeServiceServicer, name)
