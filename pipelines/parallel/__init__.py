"""Work shared out: among processes of this machine, the machines of a cluster, or those that torchrun started."""
