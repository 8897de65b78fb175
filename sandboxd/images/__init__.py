"""Images: brought in, kept, made into root file systems, given out. Knows nothing of pods.

store    the images that containerd has, their root file systems and what these use
pull     PullImage: from a registry, with fetch, examine and unpack
fetch    a pull's blobs: into the content store, as many at once as pays
examine  a layer looked through as it arrives: digest, compression, entries
unpack   layers into snapshots, as early as can be
load     archives into the store; the builtin pause image
uploads  archives that clients send: spooled, then loaded
pause    the image of every pod's first container
save     images into an archive
leftovers  what work that was cut off has left, removed
"""
