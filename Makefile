# make demo   a textured object from a picture, saved as out/demo.blend with a rendered preview;
#             EXAMPLE=examples/football_table starts from an orbit of views instead
# make test   lint, types and the whole test suite
# make docs   the documentation as a web site, out/docs/index.html; links are checked
# make test-window   the add-on in real windows of Blender 4.3 and 5.2 (Linux, as root; skipped elsewhere)
# make test PYTHON=python3.13 works beside the usual one, in an environment of its own: .venv-python3.13
PYTHON ?= python3
VENV := .venv$(patsubst %,-%,$(filter-out python3,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXAMPLE ?= examples/refrigerator.png
OUT ?= out
SOURCE = $(if $(wildcard $(EXAMPLE)/orbit.json),--views,--generator mini --device cpu --image)

.PHONY: demo docs test test-window panel-pictures test-blender lint zip repository setup clean

setup: $(STAMP)

# torch and torchvision are pinned together: each torchvision is built for one torch.
$(STAMP): pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "im3d needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet -e '.[lab,blender,dev]'
	touch $@

demo: $(STAMP)
	rm -rf $(OUT)/demo
	$(BIN)/im3d generate $(SOURCE) $(EXAMPLE) --out $(OUT)/demo --blend $(OUT)/demo.blend
	@echo "open $(OUT)/demo.blend in Blender; the preview is $(OUT)/demo/preview.png"

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict -f tools/mkdocs.yml
	@echo "open out/docs/index.html; to search it, run: $(BIN)/python -m mkdocs serve -f tools/mkdocs.yml"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest tests

# Every state of the panel, and real work, in real windows; pictures in out/window. IM3D_ROOMS names the folder in
# which the Debian systems with these Blenders are made and kept.
test-window: $(STAMP)
	$(BIN)/python tests/window/run.py

# docs/images/panel_*.png, from the same states in Blender 5.2.
panel-pictures: $(STAMP)
	$(BIN)/python tests/window/run.py sid --out out/panel --no-work --looks en_1x_dark --images docs/images \
		--states panel_idle panel_running panel_history panel_error

# The add-on in the other supported Blenders; the versions are installed as bpy from the package index.
test-blender: $(STAMP) zip
	$(BIN)/python tools/test_blenders.py

zip: $(STAMP)
	$(BIN)/python tools/build_zip.py

# A folder for any web server, from which Blender installs the extension and finds its updates.
repository: $(STAMP)
	$(BIN)/python tools/build_repository.py

clean:
	rm -rf $(OUT) dist build
