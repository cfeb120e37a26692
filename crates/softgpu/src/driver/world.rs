//! The process's devices, its planned faults and its planted bugs.

use super::op::{Event, Lasts, Stream};
use super::settings::{Settings, Sticky, variable};
use super::status::Status;
use super::trace::Trace;
use crate::decode::Program;
use crate::device::{DeviceMemory, Launch, Reservation};
use crate::ptx::{Module, Plants};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Handles carry their device's index plus one above this bit.
pub const HANDLE_SHIFT: u32 = 40;

/// A kernel of a loaded module.
pub struct Function {
    /// Its code.
    pub program: Arc<Program>,
    /// Limit of dynamic shared memory, as `cuFuncSetAttribute` raised it.
    pub dynamic_shared_max: usize,
    /// Percentage of an SM's memory that should be shared memory, or -1.
    pub carveout_percent: i32,
}

/// Memory that cublasLt has taken on a device and keeps.
#[derive(Debug, Default)]
pub struct Cublas {
    /// The library.
    pub library: Option<Reservation>,
    /// Each algorithm that was used, by its id.
    pub algorithms: HashMap<u64, Reservation>,
}

/// Everything of one device.
pub struct DeviceState {
    /// Its index.
    pub index: usize,
    /// Its memory.
    pub memory: DeviceMemory,
    /// Streams by handle; 0 is the default stream.
    pub streams: HashMap<usize, Stream>,
    /// Events by handle.
    pub events: HashMap<usize, Event>,
    /// Kernels of each module.
    pub modules: HashMap<usize, Vec<Arc<Program>>>,
    /// Functions by handle.
    pub functions: HashMap<usize, Function>,
    /// The sticky error.
    pub error: Option<Status>,
    /// How long it lasts.
    pub error_lasts: Lasts,
    /// The message that was printed with it.
    pub message: String,
    /// References of the program to the primary context.
    pub context_references: usize,
    /// Whether a library has taken a reference to the primary context, which it never releases: the
    /// CUDA runtime that is linked into cublasLt and NCCL does.
    pub held_by_library: bool,
    /// Memory of cublasLt: its own, and by algorithm that of those that were used.
    pub cublas: Cublas,
    /// The entries that ran, in logical time.
    pub trace: Trace,
    /// Counters of every launch since they were last reset.
    pub launches: Vec<Launch>,
    next: usize,
}

impl DeviceState {
    fn new(index: usize, settings: &Settings) -> Self {
        Self {
            index,
            memory: DeviceMemory::new(settings.memory_of(index), settings.checked),
            streams: HashMap::from([(0, Stream::default())]),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            error: None,
            error_lasts: Lasts::Context,
            message: String::new(),
            context_references: 0,
            held_by_library: false,
            cublas: Cublas::default(),
            trace: Trace::default(),
            launches: Vec::new(),
            next: 1,
        }
    }

    /// A new handle, which contains the index of its device.
    pub fn handle(&mut self) -> usize {
        self.next += 1;
        (self.index + 1) << HANDLE_SHIFT | self.next << 4
    }

    /// Ends what ends with the program's last reference to the primary context. A fault remains,
    /// and where a library holds the context, all that the program has not freed remains, too.
    pub fn release(&mut self, sticky: Sticky) {
        if sticky == Sticky::Context || self.error_lasts == Lasts::Context {
            self.error = None;
        }
        if sticky == Sticky::Context || !self.held_by_library {
            self.held_by_library = false;
            self.cublas = Cublas::default();
            self.reset();
        }
    }

    /// Frees everything.
    fn reset(&mut self) {
        self.memory.clear();
        self.streams.values().for_each(|stream| self.trace.forget(stream));
        self.streams = HashMap::from([(0, Stream::default())]);
        self.events.clear();
        self.modules.clear();
        self.functions.clear();
    }
}

/// Begins the name of a fault of one kernel, whose name follows.
pub(super) const LAUNCH_OF: &str = "launch@";

/// Calls that can be planned to fail.
const FAULTS: [&str; 6] = ["alloc", "lazy", "launch", "lost", "nccl", "hang"];

/// A device and a kind of call that are counted; without a device, all devices together.
type Counted = (Option<usize>, String);

/// Planned faults; calls count from 1 since the plan was made.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    plan: HashSet<(Counted, u64)>,
    seen: HashMap<Counted, u64>,
}

impl Faults {
    /// Parses `alloc:7,1/launch:12`, and reports malformed items on stderr.
    pub fn new(plan: &str) -> Self {
        let items = plan.split(',').map(str::trim).filter(|item| !item.is_empty());
        let entries = items.filter_map(|item| {
            let entry = Self::entry(item);
            if entry.is_none() {
                eprintln!("softgpu: `{item}` is not a planned fault; expected [DEVICE/]NAME:N with NAME of {FAULTS:?}");
            }
            entry
        });
        Self { plan: entries.collect(), seen: HashMap::new() }
    }

    fn entry(item: &str) -> Option<(Counted, u64)> {
        let (whose, n) = item.split_once(':')?;
        let (device, name) = match whose.split_once('/') {
            Some((device, name)) => (Some(device.parse().ok()?), name),
            None => (None, whose),
        };
        let is_known = FAULTS.contains(&name) || name.starts_with(LAUNCH_OF);
        is_known.then_some(((device, name.to_owned()), n.parse().ok()?))
    }

    fn due(&mut self, what: &str, device: usize) -> bool {
        let mut due = false;
        for counted in [None, Some(device)].map(|device| (device, what.to_owned())) {
            if self.plan.is_empty() {
                return false;
            }
            let seen = self.seen.entry(counted.clone()).or_default();
            *seen += 1;
            due |= self.plan.contains(&(counted, *seen));
        }
        due
    }
}

/// All devices and what they share.
pub struct World {
    /// Settings read by `cuInit`.
    pub settings: Settings,
    /// The devices.
    pub devices: Vec<Mutex<DeviceState>>,
    /// The addresses of each.
    pub addresses: Vec<Range<u64>>,
    /// Pinned host memory: start to bytes.
    pub pinned: Mutex<BTreeMap<usize, usize>>,
    faults: Mutex<Faults>,
    /// Plants for modules loaded from now on; a malformed list fails their loads.
    plants: Mutex<Result<Plants, String>>,
    /// Instructions edited since the plants were last set.
    planted: AtomicUsize,
    /// The seed of the order in which warps run, of launches from now on; 0: by index.
    pub warp_order: AtomicU64,
}

static WORLD: OnceLock<World> = OnceLock::new();

/// The world, after `cuInit`.
pub fn world() -> Result<&'static World, Status> {
    WORLD.get().ok_or(Status::NotInitialized)
}

/// Makes the world from the environment, once.
pub fn initialise() -> &'static World {
    WORLD.get_or_init(|| {
        let settings = Settings::from_environment();
        let devices: Vec<_> = (0..settings.devices).map(|index| DeviceState::new(index, &settings)).collect();
        let addresses = devices.iter().map(|d| d.memory.addresses()).collect();
        let devices = devices.into_iter().map(Mutex::new).collect();
        let faults = Mutex::new(Faults::new(&variable("SOFTGPU_FAIL").unwrap_or_default()));
        let plants = Mutex::new(Plants::parse(&variable("SOFTGPU_PLANT").unwrap_or_default()));
        World {
            settings,
            devices,
            addresses,
            pinned: Mutex::default(),
            faults,
            plants,
            planted: AtomicUsize::new(0),
            warp_order: AtomicU64::new(variable("SOFTGPU_ORDER").and_then(|v| v.parse().ok()).unwrap_or(0)),
        }
    })
}

impl World {
    /// Counts a call `what` of a device and returns whether it is planned to fail.
    pub fn fails(&self, what: &str, device: usize) -> bool {
        let due = self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner).due(what, device);
        if due {
            eprintln!("softgpu: planned fault: {what} of device {device}");
        }
        due
    }

    /// Replaces the plan and starts counting again.
    pub fn plan_faults(&self, plan: &str) {
        *self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Faults::new(plan);
    }

    /// Replaces the plants for modules loaded from now on.
    pub fn plan_plants(&self, text: &str) {
        *self.plants.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Plants::parse(text);
        self.planted.store(0, Ordering::Relaxed);
    }

    /// Edits a module, and reports each edit on stderr.
    ///
    /// # Errors
    /// Malformed plants, and plants that miss.
    pub fn plant(&self, module: &mut Module) -> Result<(), String> {
        let plants = self.plants.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let done = plants?.apply(module)?;
        done.iter().for_each(|what| eprintln!("softgpu: planted {what}"));
        self.planted.fetch_add(done.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Instructions edited since [`World::plan_plants`].
    pub fn planted(&self) -> usize {
        self.planted.load(Ordering::Relaxed)
    }

    /// True where all of a host range is pinned.
    pub fn is_pinned(&self, start: usize, bytes: usize) -> bool {
        let pinned = self.pinned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pinned.range(..=start).next_back().is_some_and(|(&base, &size)| start + bytes <= base + size)
    }
}
