"""The bilateral solver on SciPy's sparse matrices, written from the paper's equations.

Barron and Poole, "The Fast Bilateral Solver" (arXiv 1511.03296): the simplified bilateral grid
and its bistochastization, the linear system, and the Jacobi preconditioner. The reference of
``test_mask_refine.py`` and of ``benches/bilateral.py``.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg

# ITU-T T.871: luma, Cb and Cr (which are centred at 128).
YCBCR = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168736, -0.331264, 0.5],
        [0.5, -0.418688, -0.081312],
    ]
)


class Grid:
    """Splat matrix ``S`` [vertices, pixels], blur matrix ``B`` and the scalings ``n``, ``m``.

    Vertices are the distinct rows of the pixels' cells. ``hashed`` finds them by one number per
    row, which is several times as fast as NumPy's ``unique`` of rows, and comes to the same.
    """

    def __init__(self, rgb, spatial=16.0, luma=16.0, chroma=8.0, iterations=10, hashed=True):
        height, width, _ = rgb.shape
        ycc = rgb.reshape(-1, 3).astype(np.float64) @ YCBCR.T + [0.0, 128.0, 128.0]
        rows, columns = np.divmod(np.arange(height * width), width)
        position = np.stack([columns, rows], 1) / spatial
        features = np.concatenate([position, ycc / [luma, chroma, chroma]], 1)
        cells = np.floor(features).astype(np.int64)
        # One number per cell; each digit leaves room for a step either way.
        radix = cells.max(0) + 3
        place = np.concatenate([[1], np.cumprod(radix[:-1])])
        if hashed:
            keys, vertex = np.unique((cells + 1) @ place, return_inverse=True)
        else:
            # Last dimension first, so that rows sort as their numbers do.
            found, vertex = np.unique(cells[:, ::-1], axis=0, return_inverse=True)
            keys = (found[:, ::-1] + 1) @ place
        count, pixels = len(keys), height * width
        self.S = sparse.csr_matrix(
            (np.ones(pixels), (vertex.ravel(), np.arange(pixels))), (count, pixels)
        )
        self.B = 2.0 * len(place) * sparse.identity(count, format="csr")
        for step in place:
            at = np.searchsorted(keys, keys + step)
            found = np.flatnonzero((at < count) & (keys[np.minimum(at, count - 1)] == keys + step))
            link = sparse.csr_matrix((np.ones(len(found)), (found, at[found])), (count, count))
            self.B = self.B + link + link.T
        mass = self.S @ np.ones(pixels)
        n = np.ones(count)
        for _ in range(iterations):
            n = np.sqrt(n * mass / (self.B @ n))
        self.n, self.m = n, n * (self.B @ n)


def solve(grid, target, confidence, lam=256.0, floor=1e-5, tolerance=1e-5, iterations=25):
    """The solved map, float64, of the target's shape."""
    target, confidence = np.asarray(target, np.float64), np.asarray(confidence, np.float64)
    weight = grid.S @ confidence.ravel()
    smooth = sparse.diags(grid.m) - sparse.diags(grid.n) @ grid.B @ sparse.diags(grid.n)
    A = (lam * smooth + sparse.diags(weight)).tocsr()
    b = grid.S @ (confidence * target).ravel()
    inverse = 1.0 / np.maximum(A.diagonal(), floor)
    jacobi = LinearOperator(A.shape, lambda r: inverse * r.ravel(), dtype=np.float64)
    start = np.divide(b, weight, out=np.zeros_like(b), where=weight > 0)
    y, _ = cg(A, b, x0=start, rtol=tolerance, atol=0.0, maxiter=iterations, M=jacobi)
    return (grid.S.T @ y).reshape(target.shape)


def refine(mask, rgb, passes=2, threshold=0.5):
    """MosaicFusion's two passes: bool mask to bool mask."""
    grid = Grid(rgb)
    for _ in range(passes):
        solved = solve(grid, 255.0 * mask, np.full(mask.shape, 0.999))
        mask = solved / max(solved.max(), 1e-30) > threshold
    return mask
