"""Times a pair's passes: a drafter step, the verifier at each width, and whole rounds against the sum of their passes.

  python launch/costs.py --config=configs/costs.gin
  python launch/costs.py --config=configs/pairs/custom.gin --gin.VERIFIER="'path-or-uri'" --gin.DRAFTER="'path-or-uri'"

It says from which acceptance on drafting k tokens pays here, and prints COSTS for runs that must not measure them anew.
"""

from cascades import config

if __name__ == "__main__":
    config.run("cascades.runs.costs.costs", base="configs/costs.gin")
