"""Searches of a site's own behind the retrievers' protocol. Where they are is configuration's word and never a call's."""
