"""Insight into the machine and the daemon.

explain    which operations a name means (pure)
doctor     what a machine lacks
metrics    what the daemon counts; metrics_server gives it to Prometheus
figures    what it has, at the moment it is asked
addresses  how many of a network are used
tracing    whether spans are made
traces     what has ended as spans, for OpenTelemetry
sightings  what pods and containers could leave behind, as it is now
residue    what of it is nobody's, and what is missing (pure)
audit      both, on request and now and then; and repairs
"""
