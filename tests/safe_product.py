"""Sentinel-2 SAFE products made by hand, and zips of them."""

import zipfile
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

L2A = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
 <n1:General_Info><Product_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE></Product_Info>
 <Product_Image_Characteristics><QUANTIFICATION_VALUES_LIST>
 <BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
 <AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>{offsets}
 </Product_Image_Characteristics></n1:General_Info></n1:Level-2A_User_Product>"""
OFFSETS = (
    "<BOA_ADD_OFFSET_VALUES_LIST>"
    + "".join(f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in range(13))
    + "</BOA_ADD_OFFSET_VALUES_LIST>"
)
TRUTH = np.random.default_rng(0).uniform(0.0, 0.4, (3, 24, 24)).astype(np.float32)


def image(path: Path, data: np.ndarray, gsd_m: float, shift: float = 0) -> None:
    """A band image; TIFF pixels keep the numbers exact, which is all that the reader needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = Affine(gsd_m, 0, 600000 + shift, 0, -gsd_m, 5000040)
    profile = {"driver": "GTiff", "count": 1, "height": data.shape[0], "width": data.shape[1], "dtype": "uint16"}
    with rasterio.open(path, "w", crs="EPSG:32633", transform=transform, **profile) as sink:
        sink.write(data.astype(np.uint16)[None])


def product(root: Path, baseline: str = "05.09", offsets: str = OFFSETS, granule: str = "L2A_T33TTG") -> Path:
    """A product of 24x24 pixels of 10 m: two fine bands and one of 20 m; its first pixel has no data."""
    folder = root / "S2A_MSIL2A_20230706T100031_N0509_R122_T33TTG.SAFE"
    data = folder / "GRANULE" / granule / "IMG_DATA"
    add = 1000 if offsets else 0
    green, nir, swir = np.round(TRUTH * 1e4) + add
    green[0, 0] = 0
    image(data / "R10m" / "T33TTG_20230706T100031_B03_10m.tif", green, 10)
    image(data / "R20m" / "T33TTG_20230706T100031_B03_20m.tif", green[::2, ::2], 20)
    image(data / "R10m" / "T33TTG_20230706T100031_B08_10m.tif", nir, 10)
    image(data / "R20m" / "T33TTG_20230706T100031_B11_20m.tif", swir[::2, ::2], 20)
    (folder / "MTD_MSIL2A.xml").write_text(L2A.format(baseline=baseline, offsets=offsets))
    return folder


def zipped(folder: Path, archive: Path) -> Path:
    """A zip of a product, as the data hubs ship it."""
    with zipfile.ZipFile(archive, "w") as sink:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            sink.write(path, f"{folder.name}/{path.relative_to(folder)}")
    return archive
