//! [`Residency`]: which layers stay on the device, decided before anything is allocated.

use crate::error::{Error, ErrorKind, Result};
use crate::model::streamed::SLOTS;

/// Whether all layers stay on the device, or some pass through it in every pass.
///
/// On the CPU weights are used where they are mapped, so that streaming there changes nothing but the order of things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// All layers stay if the device has room for them; otherwise as many as it has room for, and the others are streamed.
    #[default]
    Auto,
    /// All layers stay; an error where they do not fit.
    Resident,
    /// Some layers are streamed.
    Streamed {
        /// How many stay, fewer than there are; when nothing is given, as many as fit, and none on the CPU.
        resident_layers: Option<usize>,
    },
}

/// How many layers stay, and through how many slots the others pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Layers that stay on the device.
    pub resident: usize,
    /// Layers that pass through it in every pass.
    pub streamed: usize,
    /// Places for one layer each that they pass through.
    pub slots: usize,
}

impl Placement {
    /// All layers stay.
    pub fn resident(layers: usize) -> Self {
        Self { resident: layers, streamed: 0, slots: 0 }
    }

    fn streamed(resident: usize, layers: usize) -> Self {
        Self { resident, streamed: layers - resident, slots: SLOTS }
    }

    /// The placement that was asked for. `free` bytes are free on the device, if that is known and matters; `needed` tells
    /// what a placement takes in all.
    pub(super) fn choose(
        residency: Residency,
        layers: usize,
        free: Option<usize>,
        needed: impl Fn(Self) -> usize,
    ) -> Result<Self> {
        let fitting = |free: usize| {
            // The driver loads code as it is first used, which nobody can plan: a part of what is free is left for it.
            let usable = free - free / 32;
            let fits = |&resident: &usize| needed(Self::streamed(resident, layers)) <= usable;
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
                let message = format!("{resident} resident layers of {layers} leave none to be streamed");
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

    /// A model of so many layers of 100 bytes, and 1,000 bytes of workspace.
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
    fn left_to_the_engine_all_layers_stay_where_they_fit_and_else_as_many_as_do_beside_the_slots() {
        assert_eq!(resident(Residency::Auto, 10, None), 10);
        assert_eq!(resident(Residency::Auto, 10, Some(2_000)), 10);
        // 1,999 less 62 for the driver: 9 layers, of which 2 are slots.
        assert_eq!(resident(Residency::Auto, 10, Some(1_999)), 7);
        assert_eq!(resident(Residency::Auto, 10, Some(1_300)), 0);
        // Too little for anything: the device will say how much is missing.
        assert_eq!(resident(Residency::Auto, 10, Some(0)), 0);
    }

    #[test]
    fn a_model_of_no_more_layers_than_slots_gains_nothing_by_streaming() {
        assert_eq!(resident(Residency::Auto, 2, Some(1_100)), 2);
        assert_eq!(resident(STREAMED, 2, Some(9_999)), 0);
        assert_eq!(resident(STREAMED, 1, Some(9_999)), 0);
    }

    #[test]
    fn what_is_asked_for_is_done() {
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
