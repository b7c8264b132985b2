"""Makes drafters: losses between a drafter's and its verifier's distributions, data, and the loop over them."""
