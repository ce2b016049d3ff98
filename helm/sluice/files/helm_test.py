"""What `helm test` runs in a pod: is the gateway ready, and does it list every model of the release?"""

import json
import os
import sys
import urllib.request


def get(path, key=None):
    request = urllib.request.Request(os.environ["SLUICE_URL"] + path)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.read()


def main():
    print("readyz:", get("/readyz").decode().strip())
    key = os.environ.get("SLUICE_KEY")
    if not key and os.environ["SLUICE_AUTH"] == "keys":
        print("no key (tests.existingSecret): the models were not asked for")
        return
    listed = {model["id"] for model in json.loads(get("/v1/models", key))["data"]}
    missing = sorted(set(json.loads(os.environ["SLUICE_MODELS"])) - listed)
    if missing:
        sys.exit(f"not listed by /v1/models: {', '.join(missing)}")
    print("models:", ", ".join(sorted(listed)))


main()
