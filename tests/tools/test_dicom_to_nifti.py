"""tools/dicom_to_nifti.py, on small series that the tests write: where a voxel lies, what it holds, what is refused."""

import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="tools/dicom_to_nifti.py needs `pydicom`")

TOOL = Path(__file__).resolve().parents[2] / "tools" / "dicom_to_nifti.py"
SHAPE = (5, 4, 6)                                                     # columns, rows, slices
# A gantry tilted by some degrees about the patient's left-right axis, LPS: columns to the left, rows back and down.
TILTED = [1, 0, 0, 0, np.cos(0.2), -np.sin(0.2)]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("dicom_to_nifti", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder, stored, orientation=TILTED, first=(-30.0, -20.0, 100.0), step=(0.0, 0.0, 2.5), order=None,
          series="1.2.3", slope=2, intercept=-1024, skip=()):
    """A series of stored values (X, Y, Z), slice k at first + k step; file names in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(stored.shape[2]):
        if k in skip:
            continue
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = pydicom.uid.CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"{series}.{k + 1}"
        ds.SeriesInstanceUID, ds.Modality = series, "CT"
        ds.Rows, ds.Columns = stored.shape[1], stored.shape[0]
        ds.PixelSpacing, ds.ImageOrientationPatient = [0.8, 0.7], [float(f"{v:.8f}") for v in orientation]
        ds.ImagePositionPatient = [float(f"{v:.6f}") for v in np.add(first, np.multiply(k, step))]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
        ds.PixelData = np.ascontiguousarray(stored[:, :, k].T, np.uint16).tobytes()
        ds.save_as(folder / f"{(order or (lambda k: k))(k):04d}", enforce_file_format=True)


@pytest.fixture
def stored():
    return np.random.default_rng(0).integers(0, 2000, SHAPE).astype(np.uint16)


@pytest.mark.parametrize("step", [(0.0, 0.0, 2.5), (0.0, 0.0, -2.5)], ids=["head last", "head first"])
def test_every_voxel_keeps_its_place_and_its_hu(tool, tmp_path, stored, step):
    """By the definition of DICOM: position + column * spacing * direction + row * spacing * direction, LPS -> RAS."""
    write(tmp_path / "ct", stored, step=step, order=lambda k: (7 * k + 3) % 11)
    (tmp_path / "ct" / "README").write_text("no DICOM")
    tool.main(["series", str(tmp_path / "ct"), str(tmp_path / "out" / "ct.nii.gz")])
    image = nib.load(tmp_path / "out" / "ct.nii.gz")
    array, to_index = np.asarray(image.dataobj), np.linalg.inv(image.affine)
    assert image.get_data_dtype() == np.int16 and array.shape == SHAPE
    for i, j, k in np.ndindex(SHAPE):
        in_slice = i * 0.7 * np.array(TILTED[:3]) + j * 0.8 * np.array(TILTED[3:])
        lps = np.add((-30, -20, 100), np.multiply(k, step)) + in_slice
        index = to_index @ [-lps[0], -lps[1], lps[2], 1]
        assert np.allclose(index[:3], index[:3].round(), atol=1e-3)
        assert array[tuple(index[:3].round().astype(int))] == 2 * int(stored[i, j, k]) - 1024


def test_a_stack_that_is_no_grid_is_refused(tool, tmp_path, stored):
    write(tmp_path / "gap", stored, skip=(2,))
    with pytest.raises(SystemExit, match=r"slices 1 and 2 of 5 are 5.000 mm apart, others 2.500 mm"):
        tool.main(["series", str(tmp_path / "gap"), str(tmp_path / "x.nii.gz")])
    write(tmp_path / "two", stored)
    write(tmp_path / "two" / "more", stored, series="1.2.4")
    with pytest.raises(SystemExit, match=r"2 series \(6 of 1.2.3, 6 of 1.2.4\). Put each into a folder"):
        tool.main(["series", str(tmp_path / "two"), str(tmp_path / "x.nii.gz")])
    write(tmp_path / "turned", stored)
    write(tmp_path / "turned" / "localizer", stored[:, :, :1], orientation=[1, 0, 0, 0, 0, -1])
    with pytest.raises(SystemExit, match="slices differ in ImageOrientationPatient"):
        tool.main(["series", str(tmp_path / "turned"), str(tmp_path / "x.nii.gz")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="no DICOM image with a place in space"):
        tool.main(["series", str(tmp_path / "empty"), str(tmp_path / "x.nii.gz")])
    assert not list(tmp_path.glob("*.nii*"))


def test_3d_ircadb_becomes_images_and_masks_by_class(tool, tmp_path, stored, capsys):
    """Two folders of tumours are one class; the skin is none of ours."""
    case = tmp_path / "data" / "3Dircadb1.7"
    write(case / "PATIENT_DICOM", stored)
    parts = {}
    for n, name in enumerate(("liver", "livertumor01", "livertumor02", "leftkidney", "skin")):
        parts[name] = np.zeros(SHAPE, bool)
        parts[name][n, :2] = True
        write(case / "MASKS_DICOM" / name, parts[name] * 255, slope=1, intercept=0, order=lambda k: 9 - k)
    tool.main(["ircad", str(tmp_path / "data"), str(tmp_path / "out")])
    files = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.nii.gz"))
    assert files == ["images/3Dircadb1.7.nii.gz", *(f"masks/3Dircadb1.7/{name}.nii.gz" for name in
                                                    ("left_kidney", "liver", "liver_tumor"))]
    tumour = np.asarray(nib.load(tmp_path / "out/masks/3Dircadb1.7/liver_tumor.nii.gz").dataobj)
    assert np.array_equal(tumour > 0, parts["livertumor01"] | parts["livertumor02"]) and tumour.max() == 1
    assert "left out: skin" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="out: exists already"):
        tool.main(["ircad", str(tmp_path / "data"), str(tmp_path / "out")])
