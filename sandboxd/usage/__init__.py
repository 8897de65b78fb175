"""What pods and containers use.

measure   what the kernel says of them at this moment
written   what containers have written, measured now and then
stats     CRI's statistics, with rates from two measurements
cadvisor  the same under the names that cAdvisor gave them
"""
