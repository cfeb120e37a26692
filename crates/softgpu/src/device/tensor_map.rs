//! Tensor maps: the boxes that copies bring from global to shared memory. The driver's 128 bytes are
//! opaque; these are the software GPU's own.

/// Bytes of an encoded map.
pub const MAP_BYTES: usize = 128;
/// Its address is a multiple of it.
pub const MAP_ALIGN: usize = 64;
/// Dimensions at most.
pub const RANK_MAX: usize = 5;
/// Bytes of an element: only formats of 16 bits are known here.
pub const ELEMENT_BYTES: u64 = 2;

const MAGIC: u32 = 0x7E45_0124;
const BOX_MAX: u32 = 256;
const STRIDE_END: u64 = 1 << 40;
const DIM_MAX: u64 = 1 << 32;
/// Global addresses, strides, and bytes of a box's rows are multiples of it.
const ALIGN: u64 = 16;
/// Bytes of a line that the swizzle stays in.
const SWIZZLE_BYTES: u64 = 128;

/// A map of elements of 16 bits; the first dimension is dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Global address.
    pub address: u64,
    /// Number of dimensions.
    pub rank: usize,
    /// Elements of each.
    pub dims: [u64; RANK_MAX],
    /// Bytes from one index of each dimension to the next; 2 for the first.
    pub strides: [u64; RANK_MAX],
    /// Elements of a box.
    pub box_dims: [u32; RANK_MAX],
    /// Chunks of 16 bytes are exchanged within lines of 128, by the line's index in 1,024 bytes.
    pub swizzled: bool,
}

impl TensorMap {
    /// Checks the map as the driver does.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn checked(self) -> Result<Self, String> {
        let multiple = |what: &str, value: u64| match value.is_multiple_of(ALIGN) {
            true => Ok(()),
            false => Err(format!("{what} is {value}, no multiple of {ALIGN}")),
        };
        if !(1..=RANK_MAX).contains(&self.rank) {
            return Err(format!("{} dimensions", self.rank));
        }
        multiple("the address", self.address)?;
        for axis in 0..self.rank {
            let (dim, box_dim, stride) = (self.dims[axis], self.box_dims[axis], self.strides[axis]);
            if !(1..=DIM_MAX).contains(&dim) {
                return Err(format!("dimension {axis} has {dim} elements"));
            }
            if !(1..=BOX_MAX).contains(&box_dim) {
                return Err(format!("a box has {box_dim} elements of dimension {axis}, not 1 to {BOX_MAX}"));
            }
            if axis > 0 {
                multiple(&format!("the stride of dimension {axis}"), stride)?;
                if stride >= STRIDE_END || stride < self.dims[axis - 1].saturating_mul(self.strides[axis - 1])
                {
                    return Err(format!("a stride of {stride} bytes of dimension {axis}"));
                }
            }
        }
        let row = u64::from(self.box_dims[0]) * ELEMENT_BYTES;
        multiple("a row of a box in bytes", row)?;
        if self.swizzled && row > SWIZZLE_BYTES {
            return Err(format!("a row of a box has {row} bytes, and a swizzle {SWIZZLE_BYTES}"));
        }
        Ok(self)
    }

    /// Bytes of a box, those beyond the tensor included.
    pub fn box_bytes(&self) -> u64 {
        self.box_dims[..self.rank].iter().map(|dim| u64::from(*dim)).product::<u64>() * ELEMENT_BYTES
    }

    /// The map in the bytes of a `CUtensorMap`.
    pub fn encode(&self) -> [u8; MAP_BYTES] {
        let words = [MAGIC, self.rank as u32, self.swizzled.into()].into_iter().chain(self.box_dims);
        let longs = [self.address].into_iter().chain(self.dims).chain(self.strides);
        let bytes = words.flat_map(u32::to_le_bytes).chain(longs.flat_map(u64::to_le_bytes));
        let mut out = [0; MAP_BYTES];
        out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte);
        out
    }

    /// Reads what [`encode`](Self::encode) has written; `None` for anything else.
    pub fn decode(bytes: &[u8; MAP_BYTES]) -> Option<Self> {
        let word = |index: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[4 * index + i]));
        // Behind the words.
        let long = |index: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[32 + 8 * index + i]));
        let map = Self {
            rank: word(1) as usize,
            swizzled: word(2) == 1,
            box_dims: std::array::from_fn(|axis| word(3 + axis)),
            address: long(0),
            dims: std::array::from_fn(|axis| long(1 + axis)),
            strides: std::array::from_fn(|axis| long(1 + RANK_MAX + axis)),
        };
        if word(0) == MAGIC { map.checked().ok() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: TensorMap = TensorMap {
        address: 4096,
        rank: 3,
        dims: [64, 5, 1000, 0, 0],
        strides: [2, 128, 640, 0, 0],
        box_dims: [64, 1, 64, 0, 0],
        swizzled: true,
    };

    #[test]
    fn a_map_is_read_as_it_was_written() {
        assert_eq!(TensorMap::decode(&MAP.encode()), Some(MAP));
        assert_eq!(TensorMap::decode(&[0; MAP_BYTES]), None);
        assert_eq!(MAP.box_bytes(), 64 * 64 * 2);
    }

    #[test]
    fn what_the_driver_refuses_is_refused() {
        assert_eq!(MAP.checked(), Ok(MAP));
        type Change = fn(&mut TensorMap);
        let wrong: [(&str, Change); 9] = [
            ("dimensions", |map| map.rank = 6),
            ("the address is", |map| map.address += 8),
            ("dimension 1 has 0 elements", |map| map.dims[1] = 0),
            ("257 elements", |map| map.box_dims[2] = 257),
            ("0 elements", |map| map.box_dims[1] = 0),
            ("the stride of dimension 2 is", |map| map.strides[2] += 2),
            ("a stride of 112 bytes", |map| map.strides[1] = 112),
            ("a row of a box in bytes is 24", |map| map.box_dims[0] = 12),
            ("a row of a box has 256 bytes", |map| map.box_dims[0] = 128),
        ];
        for (says, change) in wrong {
            let mut map = MAP;
            change(&mut map);
            let error = map.checked().unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
