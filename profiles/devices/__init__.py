"""Device profiles, one YAML file a chip; read by `pocketport.profiles.device`."""
