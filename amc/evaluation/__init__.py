"""From a policy to its score: evaluator, races, reward, and the problem that searchers see."""
