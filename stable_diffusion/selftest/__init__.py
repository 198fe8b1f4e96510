"""`stable-diffusion selftest`: does this machine compute what it should, and how fast?

Most users sit at machines that this program's authors never saw. Every operation is compared with its plain form on the
CPU, in one process, and the embedded model with stored pictures; what the machine leaves out is named.
"""
