//! `C = A · B (+ C)` in f32 through crate `gemm-f32`, one thread: parallel callers split the work into pieces of fixed size,
//! so that bits do not depend on the number of threads.

/// A matrix in memory: element `(i, j)` lies at `i · row + j · column`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// `rows × columns`, rows `stride` apart.
    pub fn new(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(rows == 0 || columns == 0 || (rows - 1) * stride + columns <= values.len(), "matrix inside its slice");
        Matrix { values, rows, columns, row: stride, column: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Matrix { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }
}

/// `c = a · b`, or `c += a · b` with `add`; `c` is row-major with rows `stride` apart.
pub fn multiply(c: &mut [f32], stride: usize, add: bool, a: Matrix<'_>, b: Matrix<'_>) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "inner dimensions");
    assert!(m > 0 && n > 0 && stride >= n && (m - 1) * stride + n <= c.len(), "GEMM inside its slice");
    // The micro-kernels write whole columns, so that they make the transpose: cᵀ = bᵀ · aᵀ, whose columns are rows of `c`.
    // SAFETY: the three matrices lie inside their slices (asserted here and in `Matrix::new`; a transpose covers the
    // same elements), and `c` is borrowed mutably, so it overlaps neither.
    unsafe {
        gemm_f32::gemm::f32::get_gemm_fn()(
            n,
            m,
            k,
            c.as_mut_ptr(),
            stride as isize,
            1,
            add,
            b.values.as_ptr(),
            b.row as isize,
            b.column as isize,
            a.values.as_ptr(),
            a.row as isize,
            a.column as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm_common::Parallelism::None,
        );
    }
}
