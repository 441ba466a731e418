"""Devices that people buy, as data: processor, memory and storage around the chip of `pocketport.profiles.devices`."""
