//! The GEMM: operands to f32 panels, a 4 x 16 kernel, one rounding on the way out.

use crate::check::Violation;
use crate::device::{Access, DeviceMemory};
use half::{bf16, f16};

/// Columns of a panel.
const NR: usize = 16;
/// Rows of a step.
const MR: usize = 4;

/// Element types of matrices, numbered as `cudaDataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    /// From `cudaDataType`.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::F32),
            2 => Some(Self::F16),
            14 => Some(Self::Bf16),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

/// A matrix in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Address of element (0, 0).
    pub address: u64,
    /// Element type.
    pub element: Element,
    /// Rows and columns as stored.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements from one column (or row, in row order) to the next.
    pub stride: usize,
    /// Rows are contiguous instead of columns.
    pub row_order: bool,
}

/// D = alpha * op(A) * op(B) + beta * C + bias.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// Left factor; transposed if `transpose[0]`.
    pub a: Matrix,
    /// Right factor; transposed if `transpose[1]`.
    pub b: Matrix,
    /// Added, if beta is not 0.
    pub c: Matrix,
    /// Result.
    pub d: Matrix,
    /// A column that is added to every column of the result.
    pub bias: Option<Matrix>,
    /// Whether A and B are transposed.
    pub transpose: [bool; 2],
    /// Factor of op(A) * op(B).
    pub alpha: f32,
    /// Factor of C.
    pub beta: f32,
    /// Terms summed separately before they are added to the total; 0 sums all in order.
    pub k_block: usize,
    /// Address and bytes that are overwritten before anything is read.
    pub workspace: Option<(u64, usize)>,
}

/// Every byte of the workspace afterwards: NaN in every format.
const WORKSPACE_BYTE: u8 = 0xFF;

impl Matrix {
    /// Contiguous runs: (address, elements).
    fn runs(&self) -> impl Iterator<Item = (u64, usize)> {
        let (count, length) =
            if self.row_order { (self.rows, self.columns) } else { (self.columns, self.rows) };
        let (address, step) = (self.address, (self.stride * self.element.bytes()) as u64);
        (0..count as u64).map(move |i| (address + i * step, length))
    }

    fn check(&self, name: &str, memory: &mut DeviceMemory, access: Access) -> Result<(), String> {
        for (index, (address, length)) in self.runs().enumerate() {
            memory.range(address, length * self.element.bytes(), access).map_err(
                |(violation, detail): (Violation, String)| {
                    let run = if self.row_order { "row" } else { "column" };
                    format!(
                        "{violation} in {name}, {run} {index} of {} x {}: {detail}",
                        self.rows, self.columns
                    )
                },
            )?;
        }
        Ok(())
    }

    /// # Safety
    /// The matrix was checked, and (row, column) lies in it.
    unsafe fn pointer(&self, row: usize, column: usize) -> *mut u8 {
        let index = if self.row_order { row * self.stride + column } else { column * self.stride + row };
        (self.address as usize + index * self.element.bytes()) as *mut u8
    }

    /// # Safety
    /// As [`Matrix::pointer`].
    unsafe fn read(&self, row: usize, column: usize) -> f32 {
        // SAFETY: the caller's promise; addresses need not be aligned.
        unsafe {
            let at = self.pointer(row, column);
            match self.element {
                Element::F32 => at.cast::<f32>().read_unaligned(),
                Element::F16 => f16::from_bits(at.cast::<u16>().read_unaligned()).to_f32(),
                Element::Bf16 => bf16::from_bits(at.cast::<u16>().read_unaligned()).to_f32(),
            }
        }
    }

    /// # Safety
    /// As [`Matrix::pointer`].
    unsafe fn write(&self, row: usize, column: usize, value: f32) {
        // SAFETY: the caller's promise; addresses need not be aligned.
        unsafe {
            let at = self.pointer(row, column);
            match self.element {
                Element::F32 => at.cast::<f32>().write_unaligned(value),
                Element::F16 => at.cast::<u16>().write_unaligned(f16::from_f32(value).to_bits()),
                Element::Bf16 => at.cast::<u16>().write_unaligned(bf16::from_f32(value).to_bits()),
            }
        }
    }
}

impl Gemm {
    /// Rows and columns of the result, and the terms of each sum; an error names shapes that do not
    /// match.
    pub fn sizes(&self) -> Result<(usize, usize, usize), String> {
        let op = |m: &Matrix, t: bool| if t { (m.columns, m.rows) } else { (m.rows, m.columns) };
        let ((m, k), (k2, n)) = (op(&self.a, self.transpose[0]), op(&self.b, self.transpose[1]));
        let result = (self.d.rows, self.d.columns);
        if k != k2 || result != (m, n) || (self.c.rows, self.c.columns) != (m, n) {
            return Err(format!("op(A) is {m} x {k}, op(B) {k2} x {n}, D {} x {}", result.0, result.1));
        }
        Ok((m, n, k))
    }

    /// Runs the GEMM.
    ///
    /// # Errors
    /// Shapes that do not match, and violations of memory, named by operand.
    pub fn run(&self, memory: &mut DeviceMemory) -> Result<(), String> {
        let (m, n, k) = self.sizes()?;
        if let Some((address, bytes)) = self.workspace {
            memory
                .range(address, bytes, Access::Write)
                .map_err(|(violation, detail)| format!("{violation} in the workspace: {detail}"))?;
            // SAFETY: `range` found all of the workspace inside a live allocation.
            unsafe { std::ptr::write_bytes(address as *mut u8, WORKSPACE_BYTE, bytes) };
        }
        self.a.check("A", memory, Access::Read)?;
        self.b.check("B", memory, Access::Read)?;
        if self.beta != 0.0 {
            self.c.check("C", memory, Access::Read)?;
        }
        if let Some(bias) = &self.bias {
            bias.check("the bias", memory, Access::Read)?;
        }
        self.d.check("D", memory, Access::Write)?;
        let a = self.pack_a(m, k);
        let block = if self.k_block == 0 { k.max(1) } else { self.k_block };
        let mut panel = vec![0f32; k * NR];
        for column in (0..n).step_by(NR) {
            let width = NR.min(n - column);
            self.pack_b(&mut panel, column, width, k);
            for row in (0..m).step_by(MR) {
                let mut total = [[0f32; NR]; MR];
                for from in (0..k).step_by(block) {
                    let to = (from + block).min(k);
                    let rows: [&[f32]; MR] =
                        std::array::from_fn(|r| &a[(row + r) * k + from..(row + r) * k + to]);
                    let part = tile(&rows, &panel[from * NR..to * NR]);
                    for r in 0..MR {
                        for c in 0..NR {
                            total[r][c] += part[r][c];
                        }
                    }
                }
                for r in 0..MR.min(m - row) {
                    for c in 0..width {
                        // SAFETY: (row + r, column + c) lies in C and D, which have m x n elements
                        // and were checked, and row + r in the bias, which has m.
                        unsafe {
                            let old = if self.beta == 0.0 {
                                0.0
                            } else {
                                self.beta * self.c.read(row + r, column + c)
                            };
                            let bias = self.bias.map_or(0.0, |bias| bias.read(row + r, 0));
                            self.d.write(row + r, column + c, self.alpha * total[r][c] + old + bias);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// op(A) row by row, padded with zero rows to a multiple of MR.
    fn pack_a(&self, m: usize, k: usize) -> Vec<f32> {
        let mut out = vec![0f32; m.next_multiple_of(MR) * k];
        for i in 0..m {
            for j in 0..k {
                let (row, column) = if self.transpose[0] { (j, i) } else { (i, j) };
                // SAFETY: (row, column) lies in A, which was checked.
                out[i * k + j] = unsafe { self.a.read(row, column) };
            }
        }
        out
    }

    /// `width` columns of op(B), k-major, padded with zeros to NR.
    fn pack_b(&self, panel: &mut [f32], column: usize, width: usize, k: usize) {
        for c in 0..NR {
            for j in 0..k {
                let (row, col) = if self.transpose[1] { (column + c, j) } else { (j, column + c) };
                // SAFETY: for c < width, (row, col) lies in B, which was checked.
                panel[j * NR + c] = if c < width { unsafe { self.b.read(row, col) } } else { 0.0 };
            }
        }
    }
}

fn tile(rows: &[&[f32]; MR], panel: &[f32]) -> [[f32; NR]; MR] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: both features were found a line above.
        return unsafe { tile_avx2(rows, panel) };
    }
    tile_here(rows, panel)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn tile_avx2(rows: &[&[f32]; MR], panel: &[f32]) -> [[f32; NR]; MR] {
    tile_here(rows, panel)
}

#[inline(always)]
fn tile_here(rows: &[&[f32]; MR], panel: &[f32]) -> [[f32; NR]; MR] {
    let mut sum = [[0f32; NR]; MR];
    let [r0, r1, r2, r3] = *rows;
    for ((((b, &x0), &x1), &x2), &x3) in panel.chunks_exact(NR).zip(r0).zip(r1).zip(r2).zip(r3) {
        for c in 0..NR {
            sum[0][c] += x0 * b[c];
            sum[1][c] += x1 * b[c];
            sum[2][c] += x2 * b[c];
            sum[3][c] += x3 * b[c];
        }
    }
    sum
}
