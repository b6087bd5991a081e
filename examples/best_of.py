"""Several recipes of one model, compared, and the best that keeps a limit published.

python examples/best_of.py org/model me/model-small --recipes int8 balanced small --max-kl 0.05
"""

import argparse
import sys

from spq_client import Client, InvalidRequestError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("publish_as")
    parser.add_argument("--recipes", nargs="+", default=["int8", "balanced", "small"])
    parser.add_argument("--max-kl", type=float, default=0.05)
    parser.add_argument("--text", default="wikitext2")
    parser.add_argument("--windows", type=int, default=32)
    asked = parser.parse_args()
    sweep = {
        "name": "best-of",
        "recipes": asked.recipes,
        "objective": {"minimize": "bytes_on_disk", "subject_to": {"kl": {"max": asked.max_kl}}},
        "keep": "best",
    }
    with Client() as spq:
        try:
            made = spq.submit_sweep(
                asked.model,
                sweep,
                evaluation={"perplexity": [asked.text], "limit": asked.windows},
                publish={"repo_id": asked.publish_as, "private": True},
            )
        except InvalidRequestError as refused:
            print(f"refused: {refused.detail}", file=sys.stderr)
            return 2
        done = spq.wait_sweep(made["id"])
    for member in done["members"]:
        row = member["row"]
        mark = "*" if member["number"] == done["best"] else " "
        figures = (
            f"{row['bytes_ratio']:6.1%}  KL {row['kl']:.4f}"
            if row
            else (member["error"] or {}).get("message", member["status"])
        )
        print(f"{mark} {member['fields']['recipe']:12} {figures}")
    if done["best"] is None:
        print(f"none keeps KL at most {asked.max_kl}", file=sys.stderr)
        return 1
    final = done["members"][done["best"] - 1]["final"]
    if final["status"] != "succeeded":
        print(f"not published: {final['error']['message']}", file=sys.stderr)
        return 1
    print(f"published as {final['published']['repo_id']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
