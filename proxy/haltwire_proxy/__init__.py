"""The enforcement point: whose traffic it is, whether it may pass, and how it is cut."""
