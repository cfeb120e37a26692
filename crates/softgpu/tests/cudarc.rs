//! cudarc 0.19.10 end to end through the built library, in a child process that loads it under
//! three names.

use cudarc::cublaslt::{result as lt, sys as lt_sys};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, result, sys};
use cudarc::nccl::sys as nccl;
use cudarc::nvrtc::Ptx;
use half::bf16;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output};

const SAXPY: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry saxpy(.param .u64 saxpy_y, .param .u64 saxpy_x, .param .f32 saxpy_a, .param .u32 saxpy_n)\n{\n\
    .reg .pred %p<2>; .reg .b32 %r<6>; .reg .f32 %f<5>; .reg .b64 %d<6>;\n\
    ld.param.u64 %d1, [saxpy_y]; ld.param.u64 %d2, [saxpy_x]; ld.param.f32 %f1, [saxpy_a]; ld.param.u32 %r1, [saxpy_n];\n\
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.s32 %r5, %r2, %r3, %r4;\n\
    setp.ge.u32 %p1, %r5, %r1; @%p1 bra DONE;\n\
    mul.wide.u32 %d3, %r5, 4; add.s64 %d4, %d1, %d3; add.s64 %d5, %d2, %d3;\n\
    ld.global.f32 %f2, [%d4]; ld.global.f32 %f3, [%d5]; fma.rn.f32 %f4, %f1, %f3, %f2; st.global.f32 [%d4], %f4;\n\
    DONE: ret;\n}\n";

/// Runs one of the ignored tests below in a process that sees the software GPU.
fn child(test: &str, settings: &[(&str, &str)]) -> Output {
    let exe = std::env::current_exe().expect("the test's own path");
    let library = exe.parent().expect("it lies in a folder").join("libsoftgpu.so");
    assert!(library.exists(), "{} is not built", library.display());
    let folder: PathBuf = std::env::temp_dir().join(format!("softgpu-{}-{test}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the links");
    for name in ["libcuda.so", "libcublasLt.so", "libnccl.so"] {
        let link = folder.join(name);
        let _ = std::fs::remove_file(&link);
        symlink(&library, &link).expect("a link");
    }
    let mut command = Command::new(exe);
    command.args([test, "--exact", "--ignored", "--nocapture"]).env("LD_LIBRARY_PATH", &folder);
    let output = command.envs(settings.iter().copied()).output().expect("the child starts");
    std::fs::remove_dir_all(&folder).expect("the links go");
    output
}

fn assert_passed(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let stdout = text(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{}", text(&output.stderr));
}

#[test]
fn kernels_events_and_gemms_run_through_cudarc() {
    assert_passed(&child("child_kernel_and_gemm", &[("SOFTGPU_MEMORY_GIB", "1")]));
}

#[test]
fn ranks_on_two_devices_all_reduce() {
    assert_passed(&child("child_all_reduce", &[("SOFTGPU_DEVICES", "2"), ("SOFTGPU_NCCL_SECONDS", "20")]));
}

#[test]
fn planned_faults_occur_as_planned() {
    assert_passed(&child("child_faults", &[("SOFTGPU_FAIL", "alloc:2,launch:1")]));
}

#[test]
#[ignore = "runs in a child process, started by kernels_events_and_products_run_through_cudarc"]
fn child_kernel_and_gemm() {
    // SAFETY: only opens and closes the library.
    assert!(unsafe { sys::is_culib_present() });
    let context = CudaContext::new(0).expect("a context");
    assert!(context.name().expect("a name").contains("softgpu"));
    // SAFETY: this test uses one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let module = context.load_module(Ptx::from_src(SAXPY)).expect("the module loads");
    let saxpy = module.load_function("saxpy").expect("the kernel is there");
    let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let device_x = stream.clone_htod(&x).expect("x");
    let mut device_y = stream.clone_htod(&vec![1f32; 1000]).expect("y");
    let (a, n) = (2f32, 1000u32);
    let mut launch = stream.launch_builder(&saxpy);
    launch.arg(&mut device_y).arg(&device_x).arg(&a).arg(&n);
    // SAFETY: the arguments are the kernel's parameters in order, and n is the length of both
    // arrays.
    unsafe { launch.launch(LaunchConfig::for_num_elems(n)) }.expect("the launch");
    let y = stream.clone_dtoh(&device_y).expect("y back");
    assert!((0..1000).all(|i| y[i] == 2.0 * i as f32 + 1.0));
    gemm();
}

/// D [m, n] bf16 in row order = X [m, k] * W [n, k]^T, as row-major linear layers call cublasLt:
/// D^T = W * X^T.
fn gemm() {
    let (m, n, k) = (5usize, 19usize, 40usize);
    let value = |i: usize| bf16::from_f32(((i * 37 % 101) as f32 - 50.0) / 16.0);
    let (x, w): (Vec<bf16>, Vec<bf16>) =
        ((0..m * k).map(value).collect(), (0..n * k).map(|i| value(i + 7)).collect());
    let bytes = |v: &[bf16]| v.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<u8>>();
    // SAFETY: every buffer has the size of its layout; descriptors live until the GEMM has run.
    let algorithms = unsafe {
        let [dx, dw, dd] = [m * k, n * k, m * n].map(|count| result::malloc_sync(count * 2).expect("memory"));
        result::memcpy_htod_async(dx, &bytes(&x), std::ptr::null_mut()).expect("x");
        result::memcpy_htod_async(dw, &bytes(&w), std::ptr::null_mut()).expect("w");
        let handle = lt::create_handle().expect("a handle");
        let kind = lt_sys::cudaDataType_t::CUDA_R_16BF;
        let layout = |rows: usize, columns: usize, stride: usize| {
            lt::create_matrix_layout(kind, rows as u64, columns as u64, stride as i64).expect("a layout")
        };
        let (lw, lx, ld) = (layout(k, n, k), layout(k, m, k), layout(n, m, n));
        let desc = lt::create_matmul_desc(
            lt_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            lt_sys::cudaDataType_t::CUDA_R_32F,
        )
        .expect("desc");
        let transpose = 1i32; // CUBLAS_OP_T
        let attribute = lt_sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        lt::set_matmul_desc_attribute(desc, attribute, (&raw const transpose).cast(), 4).expect("transpose");
        let preference = lt::create_matmul_pref().expect("a preference");
        let mut found = [std::mem::zeroed::<lt_sys::cublasLtMatmulHeuristicResult_t>(); 8];
        let mut count = 0;
        let status = lt_sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            desc,
            lw,
            lx,
            ld,
            ld,
            preference,
            8,
            found.as_mut_ptr(),
            &mut count,
        );
        assert_eq!(status, lt_sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        let (alpha, beta) = (1f32, 0f32);
        for heuristic in &found[..count as usize] {
            let scalars = ((&raw const alpha).cast(), (&raw const beta).cast());
            lt::matmul(
                handle,
                desc,
                scalars.0,
                scalars.1,
                dw as *const _,
                lw,
                dx as *const _,
                lx,
                dd as *const _,
                ld,
                dd as *mut _,
                ld,
                &heuristic.algo,
                std::ptr::null_mut(),
                0,
                std::ptr::null_mut(),
            )
            .expect("the product");
            let mut out = vec![0u8; m * n * 2];
            result::memcpy_dtoh_async(&mut out, dd, std::ptr::null_mut()).expect("d");
            for row in 0..m {
                for column in 0..n {
                    let exact: f64 =
                        (0..k).map(|j| x[row * k + j].to_f64() * w[column * k + j].to_f64()).sum();
                    let at = 2 * (row * n + column);
                    let got = bf16::from_le_bytes([out[at], out[at + 1]]).to_f64();
                    // One bf16 rounding of an f32 sum.
                    assert!(
                        (got - exact).abs() <= exact.abs() * 2f64.powi(-8) + 1e-4,
                        "({row}, {column}): {got}, exactly {exact}"
                    );
                }
            }
        }
        count
    };
    assert!(algorithms > 1, "several algorithms are offered");
}

#[test]
#[ignore = "runs in a child process, started by ranks_on_two_devices_add_up"]
fn child_all_reduce() {
    // SAFETY: the out parameter is a local.
    let id = unsafe {
        let mut id = std::mem::zeroed();
        assert_eq!(nccl::ncclGetUniqueId(&mut id), nccl::ncclResult_t::ncclSuccess);
        id
    };
    let ranks = [0, 1].map(|rank: i32| {
        std::thread::spawn(move || {
            let context = CudaContext::new(rank as usize).expect("a context");
            context.bind_to_thread().expect("current");
            // SAFETY: buffers of 1000 f32 live until the stream has run; the communicator is
            // destroyed once.
            unsafe {
                let mut comm = std::ptr::null_mut();
                let status = nccl::ncclCommInitRankConfig(&mut comm, 2, id, rank, std::ptr::null_mut());
                assert_eq!(status, nccl::ncclResult_t::ncclSuccess);
                let buffer = result::malloc_sync(4000).expect("memory");
                let values: Vec<f32> = (0..1000).map(|i| (i * (rank + 1)) as f32).collect();
                result::memcpy_htod_async(buffer, &values, std::ptr::null_mut()).expect("in");
                let kind = nccl::ncclDataType_t::ncclFloat32;
                let sum = nccl::ncclRedOp_t::ncclSum;
                let status = nccl::ncclAllReduce(
                    buffer as *const _,
                    buffer as *mut _,
                    1000,
                    kind,
                    sum,
                    comm,
                    std::ptr::null_mut(),
                );
                assert_eq!(status, nccl::ncclResult_t::ncclSuccess);
                let mut out = vec![0f32; 1000];
                result::memcpy_dtoh_async(&mut out, buffer, std::ptr::null_mut()).expect("out");
                assert!((0..1000).all(|i| out[i] == (3 * i) as f32));
                nccl::ncclCommDestroy(comm);
            }
        })
    });
    for rank in ranks {
        rank.join().expect("the rank passes");
    }
}

#[test]
#[ignore = "runs in a child process, started by planned_faults_come_as_planned"]
fn child_faults() {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.default_stream();
    // SAFETY: allocations are freed by the context's end.
    unsafe {
        let first = result::malloc_sync(64).expect("the first is not the planned one");
        let second = result::malloc_sync(64).expect_err("the second is");
        assert_eq!(second.0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        result::malloc_sync(64).expect("out of memory is not sticky");
        result::memset_d8_async(first, 0, 64, std::ptr::null_mut()).expect("zeros");
        let saxpy = context
            .load_module(Ptx::from_src(SAXPY))
            .expect("it loads")
            .load_function("saxpy")
            .expect("it is there");
        let (a, n) = (1f32, 8u32);
        let mut launch = stream.launch_builder(&saxpy);
        launch.arg(&first).arg(&first).arg(&a).arg(&n);
        launch.launch(LaunchConfig::for_num_elems(n)).expect("the launch itself succeeds");
    }
    let failed = stream.synchronize().expect_err("the kernel fails");
    assert_eq!(failed.0, sys::CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(
        stream.synchronize().expect_err("and stays failed").0,
        sys::CUresult::CUDA_ERROR_LAUNCH_FAILED
    );
}
