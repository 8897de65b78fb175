"""Images' names and the registries that they are fetched from. Knows nothing of containerd.

reference          names: parsing them and writing them out in full (pure)
hosts              hosts.toml: mirrors, authorities, plain HTTP (pure); hosts_dir reads the directory
auth               credentials and challenges (pure)
docker_config      the machine's own credentials; credential_helper runs the programs that it names
proxies            which proxy a URL is reached through (pure)
patience           how often and how long a transfer is tried
transport          HTTP, redirects and TLS: the only module that imports aiohttp
login              what one endpoint wants to see, and tokens
client             a repository: manifests and blobs from whichever endpoint has them
"""
