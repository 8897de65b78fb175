"""UpdateRuntimeConfig: the cluster gives this machine its pod addresses, and a template becomes the network."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from sandboxd.cni import template
from sandboxd.errors import InvalidRequest, NotReady
from sandboxd.node import Node

log = structlog.get_logger(__name__)

FILE_NAME = "10-sandboxd-pod-cidr.conflist"


def set_pod_cidr(node: Node, pod_cidr: str) -> None:
    """Write the network configuration for these CIDRs ("10.244.3.0/24,fd00:3::/64"; "" changes nothing).

    Nothing is written without `network.conf_template`, nor if another configuration is in use, which means that
    something else manages this machine's network. Running pods keep their addresses.

    Raises InvalidRequest for an invalid CIDR, NotReady if the template or the directory cannot be used.
    """
    if not pod_cidr:
        return
    wanted = template.cidrs(pod_cidr)
    network = node.config.network
    if not network.conf_template:
        log.warning("pod CIDR ignored: network.conf_template is not set", pod_cidr=pod_cidr)
        return
    target = Path(network.conf_dir) / FILE_NAME
    in_force = node.network.conf.current().config
    if in_force is not None and in_force.source != str(target):
        log.warning(
            "pod CIDR ignored: another network configuration is in use", file=in_force.source, pod_cidr=pod_cidr
        )
        return
    try:
        rendered = template.render(Path(network.conf_template).read_bytes(), wanted, network.conf_template)
    except InvalidRequest as exc:
        # The request is fine; the machine's file is not.
        raise NotReady(f"network.conf_template: {exc}") from exc
    except OSError as exc:
        raise NotReady(f"network.conf_template {network.conf_template} cannot be read: {exc.strerror}") from exc
    try:
        if target.is_file() and target.read_bytes() == rendered:
            return
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Never half a file in the directory: the suffix of the unfinished one is not looked at.
        unfinished = target.with_suffix(".unfinished")
        unfinished.write_bytes(rendered)
        os.replace(unfinished, target)
    except OSError as exc:
        raise NotReady(f"{target} cannot be written: {exc.strerror}") from exc
    log.info("network configuration written for the pod CIDR", file=str(target), pod_cidr=pod_cidr)
