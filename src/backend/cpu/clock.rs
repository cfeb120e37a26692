//! The clock of ops on the CPU: an op has completed when its call returns.

use std::time::Instant;

use super::act::Weight;
use super::backend::Cpu;
use crate::backend::timed::{Clock, ElementBytes};
use crate::backend::{Geometry, Matrix};
use crate::error::Result;

impl Clock for Cpu {
    type Mark = Instant;

    fn mark(&mut self, _: Option<Instant>) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn seconds(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok(to.duration_since(*from).as_secs_f64())
    }

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn element_bytes(&self) -> Option<ElementBytes> {
        None
    }

    fn matrix_of(weight: &Weight) -> Matrix {
        weight.which()
    }
}
