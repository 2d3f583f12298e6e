//! `C = A · B (+ C)` in f32 through crate `gemm`, one thread: parallel callers split the work into pieces of fixed size,
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
    assert!(m > 0 && n > 0 && stride >= n && (m - 1) * stride + n <= c.len(), "product inside its slice");
    // SAFETY: the three matrices lie inside their slices (asserted here and in `Matrix::new`; a transpose covers the
    // same elements), and `c` is borrowed mutably, so it overlaps neither.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0_f32,
            1.0_f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
