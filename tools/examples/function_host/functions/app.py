"""The function of the example. Its NONCE is made when the module is loaded: once for each initialisation."""
import logging
import os
import sys
import time
import uuid

from snapshot_restore_py import register_after_restore

NONCE = uuid.uuid4().hex
RESTORED = 0
COUNT = 0
logging.getLogger().setLevel(logging.INFO)
logging.info("initialised %s", NONCE)


@register_after_restore
def after_restore():
    global RESTORED
    RESTORED += 1


def generation():
    """Which instance of a sandbox this is: copies have one of their own each."""
    with open("/dev/airlock-generation") as file:
        return file.read().strip()


def handler(event, context):
    global COUNT
    COUNT += 1
    logging.info("invocation %d\nof two lines", COUNT)
    match event.get("do"):
        case "fail":
            raise ValueError("as you wish")
        case "exit":
            sys.stderr.write("I leave\n")
            os._exit(3)
        case "sleep":
            time.sleep(event["seconds"])
        case "spin":
            end = time.process_time() + event["seconds"]
            while time.process_time() < end:
                pass
    return {
        "echo": event,
        "nonce": NONCE,
        "count": COUNT,
        "restored": RESTORED,
        "generation": generation(),
        "request": context.aws_request_id,
        "remaining_ms": context.get_remaining_time_in_millis(),
    }
