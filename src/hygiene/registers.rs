//! The vector registers of a thread that has worked on content.
//!
//! What decrypts, copies and compares leaves its last blocks in them. A function that is called later may write them to
//! its frame although it never asked for them: where a constant is to stay in a register throughout a loop, the compiler
//! may save the register around a call on the way to the place where the constant is put there. From the frame they go on
//! as the unused part of something that is moved to the heap. The last sixteen bytes of a WebSocket's record were found
//! there, long after the record was gone.

#![expect(unsafe_code, reason = "clears registers")]

/// Clears the vector registers, but for what a function has to keep for its caller.
///
/// On x86-64 and AArch64; elsewhere nothing. 2 to 4 ns.
#[inline]
pub(super) fn clear() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: each is called where the CPU has its instructions.
    unsafe {
        if !is_x86_feature_detected!("avx") {
            x86::clear_sse();
        } else if !is_x86_feature_detected!("avx512vl") {
            x86::clear_avx();
        } else {
            x86::clear_avx512();
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the target has these instructions.
    unsafe {
        arm::clear();
    }
}

/// The System V calling convention has no vector registers that a function keeps for its caller. To the compiler these
/// are calls like any other.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::naked_asm;

    /// # Safety
    /// None: every x86-64 has SSE.
    #[unsafe(naked)]
    pub(super) unsafe extern "sysv64" fn clear_sse() {
        naked_asm!(
            "xorps xmm0, xmm0",
            "xorps xmm1, xmm1",
            "xorps xmm2, xmm2",
            "xorps xmm3, xmm3",
            "xorps xmm4, xmm4",
            "xorps xmm5, xmm5",
            "xorps xmm6, xmm6",
            "xorps xmm7, xmm7",
            "xorps xmm8, xmm8",
            "xorps xmm9, xmm9",
            "xorps xmm10, xmm10",
            "xorps xmm11, xmm11",
            "xorps xmm12, xmm12",
            "xorps xmm13, xmm13",
            "xorps xmm14, xmm14",
            "xorps xmm15, xmm15",
            "ret"
        )
    }

    /// # Safety
    /// The CPU has AVX.
    #[unsafe(naked)]
    pub(super) unsafe extern "sysv64" fn clear_avx() {
        naked_asm!("vzeroall", "ret")
    }

    /// With the sixteen that came with AVX-512. An instruction of that kind clears what lies beyond its operands, so the
    /// short ones clear whole registers.
    ///
    /// # Safety
    /// The CPU has AVX-512VL.
    #[unsafe(naked)]
    pub(super) unsafe extern "sysv64" fn clear_avx512() {
        naked_asm!(
            "vpxorq xmm16, xmm16, xmm16",
            "vpxorq xmm17, xmm17, xmm17",
            "vpxorq xmm18, xmm18, xmm18",
            "vpxorq xmm19, xmm19, xmm19",
            "vpxorq xmm20, xmm20, xmm20",
            "vpxorq xmm21, xmm21, xmm21",
            "vpxorq xmm22, xmm22, xmm22",
            "vpxorq xmm23, xmm23, xmm23",
            "vpxorq xmm24, xmm24, xmm24",
            "vpxorq xmm25, xmm25, xmm25",
            "vpxorq xmm26, xmm26, xmm26",
            "vpxorq xmm27, xmm27, xmm27",
            "vpxorq xmm28, xmm28, xmm28",
            "vpxorq xmm29, xmm29, xmm29",
            "vpxorq xmm30, xmm30, xmm30",
            "vpxorq xmm31, xmm31, xmm31",
            "vzeroall",
            "ret"
        )
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::naked_asm;

    /// A function keeps the lower halves of v8 to v15 for its caller (AAPCS64, "SIMD and Floating-Point registers"); who
    /// writes a lower half clears the upper one.
    ///
    /// # Safety
    /// None: NEON is a part of the target.
    #[unsafe(naked)]
    pub(super) unsafe extern "C" fn clear() {
        naked_asm!(
            "movi v0.2d, #0",
            "movi v1.2d, #0",
            "movi v2.2d, #0",
            "movi v3.2d, #0",
            "movi v4.2d, #0",
            "movi v5.2d, #0",
            "movi v6.2d, #0",
            "movi v7.2d, #0",
            "fmov d8, d8",
            "fmov d9, d9",
            "fmov d10, d10",
            "fmov d11, d11",
            "fmov d12, d12",
            "fmov d13, d13",
            "fmov d14, d14",
            "fmov d15, d15",
            "movi v16.2d, #0",
            "movi v17.2d, #0",
            "movi v18.2d, #0",
            "movi v19.2d, #0",
            "movi v20.2d, #0",
            "movi v21.2d, #0",
            "movi v22.2d, #0",
            "movi v23.2d, #0",
            "movi v24.2d, #0",
            "movi v25.2d, #0",
            "movi v26.2d, #0",
            "movi v27.2d, #0",
            "movi v28.2d, #0",
            "movi v29.2d, #0",
            "movi v30.2d, #0",
            "movi v31.2d, #0",
            "ret"
        )
    }
}

/// For tests: what stands in the registers.
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) mod testing {
    use std::arch::naked_asm;

    /// Bytes that [`held`] returns: 32 registers of 64 bytes.
    const ALL: usize = 32 * 64;

    #[unsafe(naked)]
    unsafe extern "sysv64" fn store_sse(into: *mut u8) {
        naked_asm!(
            "movups [rdi + 0], xmm0",
            "movups [rdi + 64], xmm1",
            "movups [rdi + 128], xmm2",
            "movups [rdi + 192], xmm3",
            "movups [rdi + 256], xmm4",
            "movups [rdi + 320], xmm5",
            "movups [rdi + 384], xmm6",
            "movups [rdi + 448], xmm7",
            "movups [rdi + 512], xmm8",
            "movups [rdi + 576], xmm9",
            "movups [rdi + 640], xmm10",
            "movups [rdi + 704], xmm11",
            "movups [rdi + 768], xmm12",
            "movups [rdi + 832], xmm13",
            "movups [rdi + 896], xmm14",
            "movups [rdi + 960], xmm15",
            "ret"
        )
    }

    #[unsafe(naked)]
    unsafe extern "sysv64" fn store_avx512(into: *mut u8) {
        naked_asm!(
            "vmovdqu64 [rdi + 0], zmm0",
            "vmovdqu64 [rdi + 64], zmm1",
            "vmovdqu64 [rdi + 128], zmm2",
            "vmovdqu64 [rdi + 192], zmm3",
            "vmovdqu64 [rdi + 256], zmm4",
            "vmovdqu64 [rdi + 320], zmm5",
            "vmovdqu64 [rdi + 384], zmm6",
            "vmovdqu64 [rdi + 448], zmm7",
            "vmovdqu64 [rdi + 512], zmm8",
            "vmovdqu64 [rdi + 576], zmm9",
            "vmovdqu64 [rdi + 640], zmm10",
            "vmovdqu64 [rdi + 704], zmm11",
            "vmovdqu64 [rdi + 768], zmm12",
            "vmovdqu64 [rdi + 832], zmm13",
            "vmovdqu64 [rdi + 896], zmm14",
            "vmovdqu64 [rdi + 960], zmm15",
            "vmovdqu64 [rdi + 1024], zmm16",
            "vmovdqu64 [rdi + 1088], zmm17",
            "vmovdqu64 [rdi + 1152], zmm18",
            "vmovdqu64 [rdi + 1216], zmm19",
            "vmovdqu64 [rdi + 1280], zmm20",
            "vmovdqu64 [rdi + 1344], zmm21",
            "vmovdqu64 [rdi + 1408], zmm22",
            "vmovdqu64 [rdi + 1472], zmm23",
            "vmovdqu64 [rdi + 1536], zmm24",
            "vmovdqu64 [rdi + 1600], zmm25",
            "vmovdqu64 [rdi + 1664], zmm26",
            "vmovdqu64 [rdi + 1728], zmm27",
            "vmovdqu64 [rdi + 1792], zmm28",
            "vmovdqu64 [rdi + 1856], zmm29",
            "vmovdqu64 [rdi + 1920], zmm30",
            "vmovdqu64 [rdi + 1984], zmm31",
            "ret"
        )
    }

    #[unsafe(naked)]
    unsafe extern "sysv64" fn load_sse(from: *const u8) {
        naked_asm!(
            "movups xmm0, [rdi]",
            "movups xmm1, [rdi]",
            "movups xmm2, [rdi]",
            "movups xmm3, [rdi]",
            "movups xmm4, [rdi]",
            "movups xmm5, [rdi]",
            "movups xmm6, [rdi]",
            "movups xmm7, [rdi]",
            "movups xmm8, [rdi]",
            "movups xmm9, [rdi]",
            "movups xmm10, [rdi]",
            "movups xmm11, [rdi]",
            "movups xmm12, [rdi]",
            "movups xmm13, [rdi]",
            "movups xmm14, [rdi]",
            "movups xmm15, [rdi]",
            "ret"
        )
    }

    #[unsafe(naked)]
    unsafe extern "sysv64" fn load_avx512(from: *const u8) {
        naked_asm!(
            "vmovdqu64 zmm0, [rdi]",
            "vmovdqu64 zmm1, [rdi]",
            "vmovdqu64 zmm2, [rdi]",
            "vmovdqu64 zmm3, [rdi]",
            "vmovdqu64 zmm4, [rdi]",
            "vmovdqu64 zmm5, [rdi]",
            "vmovdqu64 zmm6, [rdi]",
            "vmovdqu64 zmm7, [rdi]",
            "vmovdqu64 zmm8, [rdi]",
            "vmovdqu64 zmm9, [rdi]",
            "vmovdqu64 zmm10, [rdi]",
            "vmovdqu64 zmm11, [rdi]",
            "vmovdqu64 zmm12, [rdi]",
            "vmovdqu64 zmm13, [rdi]",
            "vmovdqu64 zmm14, [rdi]",
            "vmovdqu64 zmm15, [rdi]",
            "vmovdqu64 zmm16, [rdi]",
            "vmovdqu64 zmm17, [rdi]",
            "vmovdqu64 zmm18, [rdi]",
            "vmovdqu64 zmm19, [rdi]",
            "vmovdqu64 zmm20, [rdi]",
            "vmovdqu64 zmm21, [rdi]",
            "vmovdqu64 zmm22, [rdi]",
            "vmovdqu64 zmm23, [rdi]",
            "vmovdqu64 zmm24, [rdi]",
            "vmovdqu64 zmm25, [rdi]",
            "vmovdqu64 zmm26, [rdi]",
            "vmovdqu64 zmm27, [rdi]",
            "vmovdqu64 zmm28, [rdi]",
            "vmovdqu64 zmm29, [rdi]",
            "vmovdqu64 zmm30, [rdi]",
            "vmovdqu64 zmm31, [rdi]",
            "ret"
        )
    }

    /// Puts 64 bytes into every register, as far as it has room.
    #[inline(always)]
    pub(crate) fn fill(content: &[u8; 64]) {
        // SAFETY: the pointer is good for 64 bytes, and the CPU has the instructions.
        unsafe {
            if is_x86_feature_detected!("avx512f") {
                load_avx512(content.as_ptr());
            } else {
                load_sse(content.as_ptr());
            }
        }
    }

    /// Everything that stands in the registers now; where there is no AVX-512, their lowest 16 bytes each.
    #[inline(always)]
    pub(crate) fn held() -> [u8; ALL] {
        let mut held = [0; ALL];
        // SAFETY: there is room for all registers, and the CPU has the instructions.
        unsafe {
            if is_x86_feature_detected!("avx512f") {
                store_avx512(held.as_mut_ptr());
            } else {
                store_sse(held.as_mut_ptr());
            }
        }
        held
    }
}
