"""GPT-J's weights in every form they come in, read and written one tensor at a time.

`gptj.files` finds the bytes, `safetensors`, `pickled` and `npz` the tensors in them; `own`,
`huggingface`, `mesh_transformer` and `peft` know each kind's names; a `Source` is what all become.
"""
