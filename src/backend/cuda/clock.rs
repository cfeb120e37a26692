//! The clock of ops on a GPU: events on the compute stream, created once and recorded anew in every
//! profiled pass.

use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags;

use super::backend::Cuda;
use super::fault::OrFault;
use super::stopwatch::seconds_between;
use super::weight::Weight;
use crate::backend::timed::{Clock, ElementBytes};
use crate::backend::{Geometry, Matrix};
use crate::error::Result;

const DOING: &str = "timing a pass on the GPU";

impl Clock for Cuda {
    type Mark = CudaEvent;

    /// Ops behind the mark wait for the all-reduces that have begun, so that their time is their
    /// own; in passes that are not profiled, other rows compute meanwhile.
    fn mark(&mut self, unused: Option<CudaEvent>) -> Result<CudaEvent> {
        let context = self.ops.context();
        self.all_reducer.iter().try_for_each(|all_reducer| all_reducer.settle(context))?;
        let timing = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let event = unused.map_or_else(|| context.cuda().new_event(timing).or_fault(DOING), Ok)?;
        event.record(context.compute()).or_fault(DOING)?;
        Ok(event)
    }

    fn seconds(&self, from: &CudaEvent, to: &CudaEvent) -> Result<f64> {
        seconds_between(from, to)
    }

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn element_bytes(&self) -> Option<ElementBytes> {
        Some(ElementBytes { residual: self.format().residual_bytes(), other: self.format().bytes() })
    }

    fn matrix_of(weight: &Weight) -> Matrix {
        weight.matrix
    }
}
