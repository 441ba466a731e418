"""The backends' contract, one folder a vendor, and a small complete backend as its documentation."""
