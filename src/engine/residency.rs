//! [`Residency`]: the choice of layers that stay on the device, made before anything is allocated.

use crate::error::{Error, ErrorKind, Result};
use crate::model::streamed::SLOTS;

/// Whether all layers stay on the device, or some are streamed through it in every pass.
///
/// On the CPU weights are used where they are mapped: streaming only changes the order of
/// operations there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// All layers stay if they fit into the device's memory; otherwise as many as fit, and the
    /// others are streamed.
    #[default]
    Auto,
    /// All layers stay. An error if they do not fit.
    Resident,
    /// Some layers are streamed.
    Streamed {
        /// Number of layers that stay, less than all. By default as many as fit, and none on the
        /// CPU.
        resident_layers: Option<usize>,
    },
}

/// Numbers of layers that stay and that are streamed, and of slots for the streamed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Layers that stay on the device.
    pub resident: usize,
    /// Layers that are streamed through it in every pass.
    pub streamed: usize,
    /// Device buffers for one streamed layer each.
    pub slots: usize,
}

impl Placement {
    /// Returns the placement in which all layers stay.
    pub fn resident(layers: usize) -> Self {
        Self { resident: layers, streamed: 0, slots: 0 }
    }

    /// Returns the placement in which `resident` layers stay.
    pub(super) fn streamed(resident: usize, layers: usize) -> Self {
        Self { resident, streamed: layers - resident, slots: SLOTS }
    }

    /// Returns the placement that `residency` asks for. `free` is the device's free bytes, where
    /// they are known and matter; `needed` returns the bytes that a placement takes in all.
    pub(super) fn choose(
        residency: Residency,
        layers: usize,
        free: Option<usize>,
        needed: impl Fn(Self) -> usize,
    ) -> Result<Self> {
        let fitting = |free: usize| {
            let fits = |&resident: &usize| needed(Self::streamed(resident, layers)) <= free;
            let most = layers.saturating_sub(SLOTS);
            Self::streamed((0..=most).rev().find(fits).unwrap_or(0), layers)
        };
        let all = Self::resident(layers);
        match (residency, free) {
            (Residency::Auto, Some(free)) if needed(all) > free && layers > SLOTS => Ok(fitting(free)),
            (Residency::Auto | Residency::Resident, _) => Ok(all),
            (Residency::Streamed { resident_layers: Some(resident) }, _) if resident < layers => {
                Ok(Self::streamed(resident, layers))
            }
            (Residency::Streamed { resident_layers: Some(resident) }, _) => {
                let message = format!("{resident} of {layers} layers resident leave none to stream");
                Err(Error::new(ErrorKind::Options, message))
            }
            (Residency::Streamed { resident_layers: None }, Some(free)) => Ok(fitting(free)),
            (Residency::Streamed { resident_layers: None }, None) => Ok(Self::streamed(0, layers)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAMED: Residency = Residency::Streamed { resident_layers: None };

    /// Places a model of `layers` layers of 100 bytes, with 1,000 bytes of workspace.
    fn choose(residency: Residency, layers: usize, free: Option<usize>) -> Result<Placement> {
        let needed = |placement: Placement| 1_000 + 100 * (placement.resident + placement.slots);
        Placement::choose(residency, layers, free, needed)
    }

    fn resident(residency: Residency, layers: usize, free: Option<usize>) -> usize {
        let placement = choose(residency, layers, free).unwrap();
        assert_eq!(placement.resident + placement.streamed, layers);
        assert_eq!(placement.slots > 0, placement.streamed > 0);
        placement.resident
    }

    #[test]
    fn auto_keeps_as_many_layers_as_fit_beside_the_slots() {
        assert_eq!(resident(Residency::Auto, 10, None), 10);
        assert_eq!(resident(Residency::Auto, 10, Some(2_000)), 10);
        // 9 layers, of which 2 are slots.
        assert_eq!(resident(Residency::Auto, 10, Some(1_999)), 7);
        assert_eq!(resident(Residency::Auto, 10, Some(1_899)), 6);
        assert_eq!(resident(Residency::Auto, 10, Some(1_299)), 0);
        // Too little for any layer: the allocation will fail and report the bytes that are missing.
        assert_eq!(resident(Residency::Auto, 10, Some(0)), 0);
    }

    #[test]
    fn a_model_of_few_layers_is_streamed_only_on_request() {
        assert_eq!(resident(Residency::Auto, 2, Some(1_100)), 2);
        assert_eq!(resident(STREAMED, 2, Some(9_999)), 0);
        assert_eq!(resident(STREAMED, 1, Some(9_999)), 0);
    }

    #[test]
    fn explicit_residency_is_obeyed() {
        assert_eq!(resident(Residency::Resident, 10, Some(5)), 10);
        assert_eq!(resident(STREAMED, 10, Some(9_999)), 8);
        assert_eq!(resident(STREAMED, 10, None), 0);
        for count in [0, 1, 9] {
            assert_eq!(resident(Residency::Streamed { resident_layers: Some(count) }, 10, Some(5)), count);
        }
        let all = Residency::Streamed { resident_layers: Some(10) };
        assert_eq!(choose(all, 10, None).unwrap_err().kind(), ErrorKind::Options);
    }
}
