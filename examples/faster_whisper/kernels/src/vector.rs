//! The vectors that the kernels are written for. Without a better one, a vector is one number.

/// Some numbers of a row, as the processor multiplies them and adds the products.
///
/// # Safety
/// The processor has the vectors. Pointers are valid for as many elements as a vector has.
pub(super) trait Factors: Copy {
    const LANES: usize;
    /// Of sums.
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_bfloat16(from: *const u16) -> Self;
    /// self · other + sum
    unsafe fn times_add(self, other: Self, sum: Self) -> Self;
    unsafe fn sum(self) -> f32;
    /// The sum of each of eight vectors.
    unsafe fn sums(all: [Self; 8]) -> [f32; 8];
    /// Requests the memory.
    unsafe fn prefetch(at: *const u8);
}

/// Factors in float32.
///
/// # Safety
/// As of [`Factors`].
pub(super) trait Vector: Factors {
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load_int8(from: *const i8) -> Self;
    unsafe fn times(self, other: Self) -> Self;
    unsafe fn store(self, to: *mut f32);
}

impl Factors for f32 {
    const LANES: usize = 1;

    unsafe fn zero() -> Self {
        0.0
    }

    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { *from }
    }

    unsafe fn load_bfloat16(from: *const u16) -> Self {
        // SAFETY: as the caller promises.
        Self::from_bits(u32::from(unsafe { *from }) << 16)
    }

    unsafe fn times_add(self, other: Self, sum: Self) -> Self {
        self * other + sum
    }

    unsafe fn sum(self) -> f32 {
        self
    }

    unsafe fn sums(all: [Self; 8]) -> [f32; 8] {
        all
    }

    unsafe fn prefetch(_: *const u8) {}
}

impl Vector for f32 {
    unsafe fn splat(value: f32) -> Self {
        value
    }

    unsafe fn load_int8(from: *const i8) -> Self {
        // SAFETY: as the caller promises.
        Self::from(unsafe { *from })
    }

    unsafe fn times(self, other: Self) -> Self {
        self * other
    }

    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { *to = self }
    }
}
