"""Records files of torch.save, and their tensors as numbers.

python tests/golden/record_torch_files.py     (torch 2.13.0)
"""

import json
import pathlib

import torch

FOLDER = pathlib.Path(__file__).parent / 'torch_files'


def make_state():
  """Returns tensors of every type and of the layouts that views have."""
  base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
  layer = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
  with torch.no_grad():
    for number, value in enumerate(layer.state_dict().values()):
      values = torch.arange(value.numel()).reshape(value.shape)
      value.copy_(values / 4 + number)
  state = layer.state_dict()  # An OrderedDict with metadata.
  state.update(
    base=base,
    transposed=base.t(),
    column=base[1:, 2],
    strided=base[::2, ::3],
    scalar=torch.tensor(2.5),
    empty=torch.zeros(0, 3),
    double=torch.tensor([1 / 3], dtype=torch.float64),
    half=torch.tensor([0.1, -65504.0], dtype=torch.float16),
    bfloat16=torch.tensor([0.1, 3e38], dtype=torch.bfloat16),
    long=torch.tensor([-(2**62), 7]),
    int=torch.tensor([-(2**31), 7], dtype=torch.int32),
    short=torch.tensor([-(2**15), 7], dtype=torch.int16),
    char=torch.tensor([-128, 7], dtype=torch.int8),
    byte=torch.tensor([255, 7], dtype=torch.uint8),
    bool=torch.tensor([True, False]),
    parameter=torch.nn.Parameter(torch.ones(2)),
  )
  return state


def main():
  """Writes the files."""
  FOLDER.mkdir(exist_ok=True)
  state = make_state()
  saved = {'epoch': 3, 'state_dict': state, 'lr': [0.1], 'shape': base_shape()}
  torch.save(saved, FOLDER / 'zip.pth')
  torch.save(saved, FOLDER / 'old.pth', _use_new_zipfile_serialization=False)
  torch.save(torch.nn.Linear(2, 2), FOLDER / 'module.pth')
  script = torch.jit.script(torch.nn.Linear(2, 2))
  torch.jit.save(script, FOLDER / 'script.pt')
  numbers = {}
  for name, tensor in state.items():
    exact = tensor if tensor.dtype == torch.int64 else tensor.double()
    values = exact.flatten().tolist()
    numbers[name] = {'shape': list(tensor.shape), 'values': values}
  (FOLDER / 'values.json').write_text(json.dumps(numbers) + '\n')


def base_shape():
  """Returns a size, which torch pickles as a type of its own."""
  return torch.zeros(2, 3).shape


if __name__ == '__main__':
  main()
