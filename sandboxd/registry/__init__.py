"""Image names and the registries that serve them. Independent of containerd.

reference          image names: parsing them and writing them out in full (pure)
hosts              hosts.toml: mirrors, authorities, plain HTTP (pure); hosts_dir reads the directory
auth               credentials and challenges (pure)
docker_config      the machine's own credentials; credential_helper runs the programs that it names
proxies            the proxy for a URL (pure)
patience           how often and how long a transfer is retried
request            what is sent
transport          HTTP, redirects and TLS: the only module that imports aiohttp
connections        a transport, its library loaded with the first
refusals           what a refusing answer means
ranges             parts of blobs
login              authentication to one endpoint, and tokens
client             a repository: manifests and blobs from the first endpoint that has them
"""
