"""What pods and containers use.

records   P  what is measured and what is reported
measure      what the kernel says of them at this moment
written      what containers have written, measured now and then
stats        the use of pods and containers, with CPU rates from two measurements
readings  P  how the values of metrics are computed
families  P  cAdvisor's metrics: the table
cadvisor     the metrics of all pods, under those names
"""
