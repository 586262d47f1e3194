"""What a person's machine does with a run on a cluster, through `kubectl`: get the model out.

It has the person's own rights and no other; nothing is installed in the cluster for it.
"""

from esper_runtime.local.cluster.kubectl import Kubectl
from esper_runtime.local.cluster.pull import Pulled, pull

__all__ = ["Kubectl", "Pulled", "pull"]
