"""Insight into the machine and the daemon.

explain    which operations a name means (pure)
doctor     what a machine lacks, without a daemon; machine_look: what doctor says of it with one
pod_look   what is seen of a pod's network, with pod_packets and probes; evidence: the records of it (pure)
diagnose   from that to what is wrong (pure): diagnose_links, diagnose_filters, diagnose_reach
rulesets   what packet filters do with a packet (pure); rulesets_read: as iptables and nft print their rules (pure)
metrics    what the daemon counts; metrics_server gives it to Prometheus
figures    what it has, at the moment it is asked
addresses  how many of a network are used
tracing    whether spans are made
traces     what has ended as spans, for OpenTelemetry
sightings  what pods and containers could leave behind, as it is now
residue    what of it is nobody's, and what is missing (pure)
audit      both, on request and now and then; and repairs
"""
