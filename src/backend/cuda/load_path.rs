//! [`LoadPath`]: the path of weights from their files to a GPU, without a model on it, for
//! `bench load`.

use super::context::Context;
use super::format::ActivationFormat;
use super::heads::HeadLayout;
use super::probe::DeviceInfo;
use super::slot::Slot;
use super::uploader::Uploader;
use super::weight::WeightLayout;
use crate::backend::Geometry;
use crate::error::Result;
use crate::weights::LayerTensors;

/// An uploader, and slots for layers.
#[derive(Debug)]
pub struct LoadPath {
    // Dropped in this order: the uploader's thread ends before the memory that it copies to.
    uploader: Uploader,
    slots: [Slot; 2],
    layout: WeightLayout,
    context: Context,
}

impl LoadPath {
    /// Opens a GPU, and allocates slots for layers of the shapes of `like`.
    pub fn new(info: &DeviceInfo, geometry: &Geometry, like: &LayerTensors) -> Result<Self> {
        let context = Context::open(info)?;
        let format = ActivationFormat::of(info.capability.tier());
        let layout = WeightLayout::new(format, HeadLayout::new(geometry));
        let slot = || Slot::new(&context, layout, like);
        let (uploader, slots) = (Uploader::new(&context, None)?, [slot()?, slot()?]);
        Ok(Self { uploader, slots, layout, context })
    }

    /// Reads layers into pinned memory as loading does, and copies nothing.
    pub fn read(&mut self, layers: &[LayerTensors]) -> Result<()> {
        layers.iter().try_for_each(|layer| self.uploader.check(self.layout, layer))?;
        self.uploader.finish_loads(&self.context)
    }

    /// Copies layers into the slots in turn, and waits for the last copy.
    pub fn copy(&mut self, layers: &[LayerTensors]) -> Result<()> {
        for (index, layer) in layers.iter().enumerate() {
            let slot = &mut self.slots[index % 2];
            slot.wait(&self.context)?;
            slot.stage(&self.context, &self.uploader, layer)?;
        }
        for slot in &mut self.slots {
            slot.wait(&self.context)?;
        }
        self.context.synchronize()
    }
}
