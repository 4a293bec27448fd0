#!/usr/bin/env python3
"""The target of RLHF without training the model: σ(s) ∝ p0(s) exp(β r(s)). Here r is the log-probability that a judge
finds the text happy, and β sets how much it counts. log Z / β is the soft value of the prompt."""
from support import Clotho, learned

clotho = Clotho()
prompt, beta = "After the funeral we", 16.0
reward = {"type": "judge", "answer": " happy", "against": [" sad"], "weight": beta,
          "template": "What a lovely day, we laughed so much. => happy\nMy dog died yesterday. => sad\n"
                      "I lost my job and my friends. => sad\nWe won the game! => happy\n{prompt}{text} =>"}
target = {"prompt": prompt, "max_tokens": 8, "stop": ["."], "particles": 32, "potential": reward}

print(f"Learn a twist for exp({beta:g} r):")
clotho.learn({"name": "happy", "prompts": [prompt], "max_tokens": 8, "stop": ["."], "potential": reward,
              "head": {"type": "linear"}, "method": "ctl", "particles": 64, "updates": 80, "learning_rate": 0.0001,
              "seed": 1})
clotho.compare(target, {"base model": {}, "learned twist": learned("happy")})
clotho.show("Texts with the twist:", target | learned("happy") | {"seed": 1})
