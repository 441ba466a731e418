"""Device profiles, one TOML file a chip; read by `pocketport.profiles.device`."""
