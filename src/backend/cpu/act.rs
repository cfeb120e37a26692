//! Activations, weights and RoPE tables of the CPU backend.

use std::ops::Range;

use memmap2::{MmapMut, MmapOptions};

use super::elementwise::RopeTable;
use super::gemm::{Input, Layout, Output};
use super::strips::{Strips, StripsMut};
use super::view::{Rows, RowsMut};
use crate::backend::Matrix;
use crate::config::Norm;
use crate::elementary;
use crate::error::{Error, ErrorKind, Result};
use crate::weights::HostTensor;

/// Floats from one row of an activation to the next: an odd number of cache lines, so that the
/// neighbouring rows that a GEMM reads at once lie in different sets of the caches. (Rows of 4,096
/// floats would all fall into one.)
pub(super) fn row_stride(width: usize) -> usize {
    const LINE: usize = 16;
    (width.div_ceil(LINE) | 1) * LINE
}

/// An activation: rows of f32, `row_stride` apart, or strips for the next matmul. Width and layout are
/// those of the op that wrote it last.
///
/// The memory is mapped from the system, zeroed and not in RAM until it is touched, so that
/// capacity for the longest sequence costs nothing while sequences are short.
pub struct Act {
    memory: MmapMut,
    width: usize,
    layout: Layout,
}

impl Act {
    /// Allocates `floats` elements, those between the rows included.
    pub(super) fn new(floats: usize) -> Result<Self> {
        let memory = floats
            .checked_mul(size_of::<f32>())
            .ok_or_else(|| "more bytes than an address can count".to_owned())
            .and_then(|bytes| {
                let mapped = MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon();
                mapped.map_err(|error| format!("{bytes} bytes: {error}"))
            })
            .map_err(|reason| {
                Error::new(ErrorKind::Memory, format!("no memory for an activation: {reason}"))
                    .with_hint("a smaller longest sequence or fewer tokens per batch need less")
            })?;
        Ok(Self { memory, width: 0, layout: Layout::Rows })
    }

    /// Returns the first `rows` rows, which an op has written with this `width`.
    pub(super) fn read(&self, rows: usize, width: usize) -> &[f32] {
        assert_eq!((self.width, self.layout), (width, Layout::Rows), "the activation has another shape");
        &self.floats()[..rows * row_stride(width)]
    }

    /// Returns rows `rows`, of which the first `width` columns are read.
    pub(super) fn rows(&self, rows: Range<usize>, width: usize) -> Rows<'_> {
        assert_eq!(self.layout, Layout::Rows, "the activation has another layout");
        let stride = row_stride(self.width);
        Rows::new(&self.floats()[rows.start * stride..], rows.len(), width, stride)
    }

    /// Returns rows `rows`, of which the first `width` columns are read, for a GEMM; of strips those
    /// from a strip's first row on.
    pub(super) fn input(&self, rows: Range<usize>, width: usize) -> Input<'_> {
        match self.layout {
            Layout::Rows => self.rows(rows, width).into(),
            Layout::Strips(format) => {
                assert_eq!(self.width, width, "the activation was written with another width");
                assert!(rows.start.is_multiple_of(format.lanes()), "row {} within a strip", rows.start);
                let first = format.floats(rows.start, width);
                Input::Strips(Strips::new(&self.floats()[first..], rows.len(), width, format))
            }
        }
    }

    /// Returns the first `rows` rows to write in `layout`, `width` wide.
    pub(super) fn output(&mut self, rows: usize, width: usize, layout: Layout) -> Output<'_> {
        match layout {
            Layout::Rows => self.rows_mut(0..rows, width).into(),
            Layout::Strips(format) => {
                (self.width, self.layout) = (width, layout);
                let floats = bytemuck::cast_slice_mut::<u8, f32>(&mut self.memory);
                StripsMut::new(floats, rows, width, format).into()
            }
        }
    }

    /// Returns rows `rows` to write; all rows are `width` wide from here on.
    pub(super) fn write(&mut self, rows: Range<usize>, width: usize) -> &mut [f32] {
        (self.width, self.layout) = (width, Layout::Rows);
        let stride = row_stride(width);
        &mut bytemuck::cast_slice_mut::<u8, f32>(&mut self.memory)[rows.start * stride..rows.end * stride]
    }

    /// Like [`write`](Self::write), as a view.
    pub(super) fn rows_mut(&mut self, rows: Range<usize>, width: usize) -> RowsMut<'_> {
        let count = rows.len();
        RowsMut::new(self.write(rows, width), count, width, row_stride(width))
    }

    fn floats(&self) -> &[f32] {
        // A mapping begins at a page, so the cast finds it aligned.
        bytemuck::cast_slice(&self.memory)
    }
}

/// A weight: matrices stay in their files.
pub struct Weight(Kind);

enum Kind {
    Matrix { which: Matrix, pieces: Vec<HostTensor>, bias: Option<Vec<f32>> },
    Vector(Vec<f32>),
}

impl Weight {
    pub(super) fn matrix(which: Matrix, pieces: &[HostTensor], bias: Option<&[HostTensor]>) -> Self {
        let bias = bias.map(|pieces| pieces.iter().flat_map(values).collect());
        Self(Kind::Matrix { which, pieces: pieces.to_vec(), bias })
    }

    /// The weight of a norm, as it is multiplied with.
    pub(super) fn vector(tensor: &HostTensor, norm: Norm) -> Self {
        let mut values = values(tensor);
        if norm == Norm::OnePlus {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        Self(Kind::Vector(values))
    }

    /// The projection that the matrix is.
    pub(super) fn which(&self) -> Matrix {
        match self.0 {
            Kind::Matrix { which, .. } => which,
            Kind::Vector(_) => unreachable!("a vector is no matrix"),
        }
    }

    pub(super) fn pieces(&self) -> &[HostTensor] {
        match &self.0 {
            Kind::Matrix { pieces, .. } => pieces,
            Kind::Vector(_) => unreachable!("a vector is no matrix"),
        }
    }

    pub(super) fn bias(&self) -> Option<&[f32]> {
        match &self.0 {
            Kind::Matrix { bias, .. } => bias.as_deref(),
            Kind::Vector(_) => None,
        }
    }

    pub(super) fn values(&self) -> &[f32] {
        match &self.0 {
            Kind::Vector(values) => values,
            Kind::Matrix { .. } => unreachable!("a matrix is no norm's weight"),
        }
    }

    pub(super) fn in_features(&self) -> usize {
        self.pieces()[0].cols()
    }

    pub(super) fn out_features(&self) -> usize {
        self.pieces().iter().map(HostTensor::rows).sum()
    }
}

fn values(tensor: &HostTensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.cols()];
    tensor.row_to_f32(0, &mut values);
    values
}

/// RoPE's cosines and sines by position, for the positions that batches have had.
pub(super) struct RopeTables {
    frequencies: Vec<f32>,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTables {
    pub(super) fn new(frequencies: Vec<f32>) -> Self {
        Self { frequencies, positions: 0, cos: Vec::new(), sin: Vec::new() }
    }

    /// Extends the tables to positions `0..positions`.
    pub(super) fn extend(&mut self, positions: usize) -> Result<()> {
        if positions <= self.positions {
            return Ok(());
        }
        let more = (positions - self.positions) * self.frequencies.len();
        for table in [&mut self.cos, &mut self.sin] {
            table.try_reserve_exact(more).map_err(|error| {
                Error::new(ErrorKind::Memory, format!("no memory for RoPE tables of {positions} positions"))
                    .caused_by(error)
            })?;
        }
        for position in self.positions..positions {
            for &frequency in &self.frequencies {
                // Rounded to f32 as in Transformers.
                let angle = position as f32 * frequency;
                self.cos.push(elementary::cos(angle));
                self.sin.push(elementary::sin(angle));
            }
        }
        self.positions = positions;
        Ok(())
    }

    pub(super) fn table(&self) -> RopeTable<'_> {
        let half = self.frequencies.len();
        let rows = |values| Rows::new(values, self.positions, half, half);
        RopeTable { cos: rows(&self.cos), sin: rows(&self.sin) }
    }
}
