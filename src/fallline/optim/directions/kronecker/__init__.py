"""Kronecker preconditioners: statistics of every mode of a tensor, cut into blocks, their roots, and whose length a step has.

    U = G ×_1 H_1^{−1/2k} … ×_k H_k^{−1/2k},   H_i a sum or an average of M_i M_iᵀ with M_i = unfold_i(G)

- :mod:`.factors`: how the H_i of one mode is kept (whole, as a diagonal, in 4 bits) and what its root is;
- :mod:`.preconditioner`: the product over the modes of a tensor, and when roots are due;
- :mod:`.blocks`: tensors as blocks, each with factors of its own, all of them here or some of them on other processes;
- :mod:`.grafting`: the averages before, the length and the momentum after.
"""
