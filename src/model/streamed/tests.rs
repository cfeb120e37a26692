//! Streaming over a backend that only records its calls.

use std::ops::Range;
use std::path::Path;

use super::*;
use crate::backend::{Features, Matrix, Reduction, Role, Rotate, Tokens};
use crate::batch::Packed;
use crate::config::ModelConfig;
use crate::shard::Shard;
use crate::weights::{Checkpoint, HostTensor};

/// A weight is the name of its tensor.
#[derive(Default)]
struct Recorder {
    slots: usize,
    log: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq)]
enum Event {
    /// The copy of a layer into a slot begins.
    Stage {
        slot: usize,
        layer: usize,
    },
    Await {
        slot: usize,
    },
    /// A layer is computed.
    Use {
        layer: usize,
    },
    /// A streamed layer is checked at load.
    Check {
        layer: usize,
    },
}

struct Slot {
    number: usize,
    holds: Option<LayerWeights<String>>,
}

/// Parses N from `model.layers.N.`.
fn layer_of(name: &str) -> usize {
    name.split('.').nth(2).unwrap().parse().unwrap()
}

impl Backend for Recorder {
    type Act = ();
    type Weight = String;
    type Metadata = ();
    type Slot = Slot;

    fn matrix(&mut self, _: Matrix, pieces: &[HostTensor], _: Option<&[HostTensor]>) -> Result<String> {
        Ok(pieces[0].name().to_owned())
    }

    fn vector(&mut self, tensor: &HostTensor) -> Result<String> {
        Ok(tensor.name().to_owned())
    }

    fn slot(&mut self, _like: &LayerTensors) -> Result<Slot> {
        self.slots += 1;
        Ok(Slot { number: self.slots - 1, holds: None })
    }

    fn check(&mut self, layer: &LayerTensors) -> Result<()> {
        self.log.push(Event::Check { layer: layer_of(layer.o.name()) });
        Ok(())
    }

    fn stage(&mut self, slot: &mut Slot, layer: &LayerTensors) -> Result<()> {
        slot.holds = Some(self.load_layer(layer)?);
        self.log.push(Event::Stage { slot: slot.number, layer: layer_of(layer.o.name()) });
        Ok(())
    }

    fn await_slot<'a>(&mut self, slot: &'a mut Slot) -> Result<&'a LayerWeights<String>> {
        self.log.push(Event::Await { slot: slot.number });
        Ok(slot.holds.as_ref().unwrap())
    }

    fn activation(&mut self, _: Role, _: usize) -> Result<()> {
        unreachable!()
    }

    fn metadata(&mut self, _: &Packed) -> Result<()> {
        unreachable!()
    }

    fn parts((): &()) -> &[Range<usize>] {
        unreachable!()
    }

    fn embed(&mut self, _: &HostTensor, _: &Packed, (): &mut ()) -> Result<()> {
        unreachable!()
    }

    fn add_rms_norm(
        &mut self,
        (): &mut (),
        _: Reduction,
        _: Option<&String>,
        _: &String,
        _: Range<usize>,
        (): &mut (),
    ) -> Result<()> {
        unreachable!()
    }

    fn linear(
        &mut self,
        (): &(),
        _: Range<usize>,
        _: &String,
        _: Features,
        (): &mut (),
        _: usize,
    ) -> Result<()> {
        unreachable!()
    }

    fn rope(
        &mut self,
        (): &mut (),
        (): &(),
        _: Tokens,
        _: Rotate,
        _: Option<&[Self::Weight; 2]>,
    ) -> Result<()> {
        unreachable!()
    }

    fn attention(&mut self, (): &mut (), (): &(), _: Tokens, _: Option<usize>, (): &mut ()) -> Result<()> {
        unreachable!()
    }

    fn row_parallel(&mut self, (): &(), _: usize, _: &String, _: Range<usize>, (): &mut ()) -> Result<()> {
        unreachable!()
    }

    fn all_reduce(&mut self, _: Range<usize>, (): &mut ()) -> Result<Reduction> {
        unreachable!()
    }

    fn gate_mul(&mut self, (): &mut (), _: usize) -> Result<()> {
        unreachable!()
    }

    fn gather_last(&mut self, (): &(), (): &(), (): &mut ()) -> Result<()> {
        unreachable!()
    }

    fn head(&mut self, (): &(), _: &String, _: usize) -> Result<()> {
        unreachable!()
    }

    fn logits(&mut self) -> Result<Vec<f32>> {
        unreachable!()
    }
}

/// The first layers of the demo model.
fn tensors(layers: usize) -> ModelTensors {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/model");
    let config = ModelConfig::read(&dir).unwrap();
    let shard = Shard::new(&config, 0, 1).unwrap();
    let mut tensors = ModelTensors::open(&Checkpoint::open(&dir).unwrap(), &config, &shard).unwrap();
    tensors.layers.truncate(layers);
    tensors
}

fn streamed_of(layers: usize, streamed: usize) -> Vec<usize> {
    (0..layers).filter(|&index| is_streamed(index, layers, streamed)).collect()
}

#[test]
fn streamed_layers_lie_evenly_between_resident_ones() {
    assert_eq!(streamed_of(6, 3), [1, 3, 5]);
    assert_eq!(streamed_of(7, 2), [3, 6]);
    assert_eq!(streamed_of(3, 3), [0, 1, 2]);
    assert_eq!(streamed_of(80, 1), [79]);
    for layers in 1..40 {
        for streamed in 1..=layers {
            let at = streamed_of(layers, streamed);
            assert_eq!(at.len(), streamed);
            // The gap from the last one to the first one of the next pass counts too.
            let next = at[1..].iter().copied().chain([at[0] + layers]);
            let gaps: Vec<usize> = at.iter().zip(next).map(|(at, next)| next - at).collect();
            let (least, most) = (layers / streamed, layers.div_ceil(streamed));
            assert!(gaps.iter().all(|gap| (least..=most).contains(gap)), "{layers} {streamed}: {gaps:?}");
        }
    }
}

#[test]
fn every_pass_stages_each_streamed_layer_once() {
    const PASSES: usize = 4;
    for layers in 1..=tensors(usize::MAX).layers.len() {
        for resident in 0..layers {
            let (mut backend, tensors) = (Recorder::default(), tensors(layers));
            let mut source = Streamed::load(&mut backend, &tensors, resident).unwrap();
            for _ in 0..PASSES {
                for index in 0..layers {
                    let weights = source.layer(&mut backend, index).unwrap();
                    assert!(weights.all().iter().all(|name| layer_of(name) == index), "{index}: {weights:?}");
                    backend.log.push(Event::Use { layer: index });
                }
                source.end_pass(&mut backend).unwrap();
            }
            let streamed = streamed_of(layers, layers - resident);
            assert_order(&backend.log, &streamed, PASSES, &format!("{resident} of {layers} resident"));
        }
    }
}

#[test]
#[should_panic(expected = "layer 2 was requested out of order")]
fn a_skipped_layer_panics() {
    let (mut backend, tensors) = (Recorder::default(), tensors(3));
    let mut source = Streamed::load(&mut backend, &tensors, 0).unwrap();
    source.layer(&mut backend, 0).unwrap();
    let _ = source.layer(&mut backend, 2);
}

/// Asserts of a log: each streamed layer is checked once; stagings are in the order of use, over
/// all passes; slots are used in turn, awaited before use and staged again only afterwards; there
/// is one staging per streamed layer and pass, and one more per slot.
fn assert_order(log: &[Event], streamed: &[usize], passes: usize, what: &str) {
    let checked = log.iter().filter_map(|event| match event {
        Event::Check { layer } => Some(*layer),
        _ => None,
    });
    assert_eq!(checked.collect::<Vec<usize>>(), streamed, "{what}");
    let staged = log.iter().filter_map(|event| match event {
        Event::Stage { slot, layer } => Some((*slot, *layer)),
        _ => None,
    });
    let count = passes * streamed.len() + SLOTS;
    let expected: Vec<_> = (0..count).map(|n| (n % SLOTS, streamed[n % streamed.len()])).collect();
    assert_eq!(staged.collect::<Vec<_>>(), expected, "{what}");
    // The layer in each slot, and the slot that was awaited last.
    let mut slots = [None; SLOTS];
    let mut current = None;
    for event in log {
        match *event {
            Event::Check { .. } => {}
            Event::Stage { slot, layer } => {
                slots[slot] = Some(layer);
                current = current.filter(|&current| current != slot);
            }
            Event::Await { slot } => current = Some(slot),
            Event::Use { layer } if streamed.contains(&layer) => {
                assert_eq!(current.and_then(|slot| slots[slot]), Some(layer), "{what}");
            }
            Event::Use { .. } => {}
        }
    }
    let last = log.iter().rposition(|event| matches!(event, Event::Use { .. })).unwrap();
    let after = log[last..].iter().any(|event| matches!(event, Event::Stage { .. }));
    assert_eq!(after, streamed.last() == log[last].layer().as_ref(), "{what}: the pass's end frees a slot");
}

impl Event {
    fn layer(&self) -> Option<usize> {
        match self {
            Self::Stage { layer, .. } | Self::Use { layer } | Self::Check { layer } => Some(*layer),
            Self::Await { .. } => None,
        }
    }
}
