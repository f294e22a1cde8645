// Run with the official JavaScript SDK's folder as working directory, by tests/contract/test_e2b_js.py.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { after, before, test } from 'node:test'

const require = createRequire(path.join(process.cwd(), 'package.json'))
const { CommandExitError, NotFoundError, Sandbox, TimeoutError } = await import(
  pathToFileURL(require.resolve('e2b')).href
)

let shared
before(async () => {
  shared = await Sandbox.create({ timeoutMs: 120_000, envs: { COLOUR: 'blue' }, metadata: { by: 'js' } })
})
after(async () => {
  await shared.kill()
})

test('a new sandbox runs a command and dies when killed', async () => {
  const sandbox = await Sandbox.create()
  assert.equal(await sandbox.isRunning(), true)
  assert.equal((await sandbox.commands.run('echo hello')).stdout, 'hello\n')
  assert.equal(await sandbox.kill(), true)
  assert.equal(await sandbox.isRunning(), false)
})

test('variables, folder and user reach a command', async () => {
  const result = await shared.commands.run('echo $COLOUR $OWN; pwd; whoami', {
    envs: { OWN: 'red' },
    cwd: '/tmp',
    user: 'root',
  })
  assert.equal(result.stdout, 'blue red\n/tmp\nroot\n')
})

test('output streams and a failing command tells its exit code', async () => {
  const seen = []
  const run = shared.commands.run('echo out; echo err >&2; exit 5', { onStdout: (text) => seen.push(text) })
  await assert.rejects(run, (error) => {
    assert.ok(error instanceof CommandExitError)
    assert.equal(error.exitCode, 5)
    assert.equal(error.stderr, 'err\n')
    return true
  })
  assert.equal(seen.join(''), 'out\n')
})

test('a background command takes input, is listed and killed', async () => {
  const handle = await shared.commands.run('cat', { background: true, stdin: true })
  await shared.commands.sendStdin(handle.pid, 'typed\n')
  assert.ok((await shared.commands.list()).some((process) => process.pid === handle.pid))
  await shared.commands.closeStdin(handle.pid)
  assert.equal((await handle.wait()).stdout, 'typed\n')
  const sleeper = await shared.commands.run('sleep 300', { background: true })
  assert.equal(await sleeper.kill(), true)
  assert.equal(await shared.commands.kill(sleeper.pid), false)
})

test('a command that takes too long is ended', async () => {
  await assert.rejects(shared.commands.run('sleep 30', { timeoutMs: 1000 }), TimeoutError)
})

test('files are written, read in every format, listed, renamed and removed', async () => {
  const info = await shared.files.write('/home/user/js/a.txt', 'grüße')
  assert.equal(info.path, '/home/user/js/a.txt')
  assert.equal(await shared.files.read('/home/user/js/a.txt'), 'grüße')
  const bytes = await shared.files.read('/home/user/js/a.txt', { format: 'bytes' })
  assert.deepEqual(Buffer.from(bytes), Buffer.from('grüße'))
  const blob = await shared.files.read('/home/user/js/a.txt', { format: 'blob' })
  assert.equal(await blob.text(), 'grüße')
  const chunks = []
  for await (const chunk of await shared.files.read('/home/user/js/a.txt', { format: 'stream' })) chunks.push(chunk)
  assert.equal(Buffer.concat(chunks).toString(), 'grüße')
  await shared.files.rename('/home/user/js/a.txt', '/home/user/js/b.txt')
  assert.deepEqual((await shared.files.list('/home/user/js')).map((entry) => entry.name), ['b.txt'])
  await shared.files.remove('/home/user/js')
  assert.equal(await shared.files.exists('/home/user/js'), false)
  await assert.rejects(shared.files.read('/home/user/js/b.txt'), NotFoundError)
})

test('a watch tells what happens in a folder', async () => {
  await shared.files.makeDir('/home/user/watched')
  let told
  const first = new Promise((resolve) => (told = resolve))
  const watch = await shared.files.watchDir('/home/user/watched', (event) => told(event))
  await shared.files.write('/home/user/watched/new', 'x')
  assert.equal((await first).name, 'new')
  await watch.stop()
})

test('a terminal runs lines', async () => {
  let seen = ''
  let told
  const done = new Promise((resolve) => (told = resolve))
  const terminal = await shared.pty.create({
    cols: 97,
    rows: 30,
    onData: (data) => {
      seen += Buffer.from(data).toString()
      if (seen.includes('width-97')) told()
    },
  })
  await shared.pty.sendInput(terminal.pid, Buffer.from('echo width-$(tput cols)\n'))
  await done
  assert.equal(await shared.pty.kill(terminal.pid), true)
})

test('lists are filtered by metadata, and info tells it', async () => {
  const pages = Sandbox.list({ query: { metadata: { by: 'js' } } })
  const found = await pages.nextItems()
  assert.deepEqual(found.map((item) => item.sandboxId), [shared.sandboxId])
  assert.deepEqual((await shared.getInfo()).metadata, { by: 'js' })
})

test('connecting by id reaches the same machine', async () => {
  await shared.files.write('/tmp/marker', 'here')
  const again = await Sandbox.connect(shared.sandboxId)
  assert.equal(await again.files.read('/tmp/marker'), 'here')
})

test('a killed sandbox ends a command under way with an error that says so', async () => {
  const sandbox = await Sandbox.create()
  const handle = await sandbox.commands.run('sleep 60', { background: true })
  await sandbox.kill()
  await assert.rejects(handle.wait(), /sandbox was killed or reached its end of life/)
})

test('an unknown template is refused', async () => {
  await assert.rejects(Sandbox.create('no-such-template'), /no-such-template/)
})

test('content is the same however it travels', async () => {
  const data = Buffer.from(Array.from({ length: 200_000 }, (_, n) => (n * 7919) % 256))
  for (const options of [{}, { gzip: true }, { useOctetStream: true }]) {
    await shared.files.write('/tmp/data', new Blob([data]), options)
    for (const gzip of [false, true]) {
      const read = await shared.files.read('/tmp/data', { format: 'bytes', gzip })
      assert.ok(data.equals(Buffer.from(read)))
    }
  }
})

test('metadata stays with its file', async () => {
  const info = await shared.files.write('/tmp/described', 'x', { metadata: { Colour: 'blue' } })
  assert.equal(info.name, 'described')
  await shared.files.rename('/tmp/described', '/tmp/moved')
  assert.deepEqual((await shared.files.getInfo('/tmp/moved')).metadata, { colour: 'blue' })
})

test('signed links carry a file both ways', async () => {
  const route = { 'E2b-Sandbox-Id': shared.sandboxId, 'E2b-Sandbox-Port': '49983' }
  const form = new FormData()
  form.append('file', new Blob(['by link']), 'signed.txt')
  const sent = await fetch(await shared.uploadUrl('/tmp/signed.txt'), {
    method: 'POST',
    body: form,
    headers: route,
  })
  assert.equal(sent.status, 200)
  const got = await fetch(await shared.downloadUrl('/tmp/signed.txt'), { headers: route })
  assert.equal(await got.text(), 'by link')
})

test('a watch with entries sees what happens below', async () => {
  await shared.files.makeDir('/home/user/deeply/nested')
  const seen = []
  let told
  const written = new Promise((resolve) => (told = resolve))
  const onEvent = (event) => {
    seen.push(event)
    if (event.name === 'nested/file' && event.type === 'write') told()
  }
  const watch = await shared.files.watchDir('/home/user/deeply', onEvent, {
    recursive: true,
    includeEntry: true,
  })
  await shared.files.write('/home/user/deeply/nested/file', 'x')
  await written
  assert.equal(seen[0].type, 'create')
  assert.equal(seen[0].entry.path, '/home/user/deeply/nested/file')
  await watch.stop()
})

test('a terminal is resized, left and joined again', async () => {
  let seen = ''
  let told
  const reading = (data) => {
    seen += Buffer.from(data).toString()
    told?.()
  }
  const until = async (text) => {
    while (!seen.includes(text)) await new Promise((resolve) => (told = resolve))
  }
  const terminal = await shared.pty.create({ cols: 80, rows: 24, onData: reading })
  await shared.pty.resize(terminal.pid, { cols: 131, rows: 40 })
  await shared.pty.sendInput(terminal.pid, Buffer.from('echo width-$(tput cols)\n'))
  await until('width-131')
  await terminal.disconnect()
  const again = await shared.pty.connect(terminal.pid, { onData: reading })
  assert.equal(again.pid, terminal.pid)
  await shared.pty.sendInput(again.pid, Buffer.from('echo still-$((40+2)); exit\n'))
  await until('still-42')
  assert.equal((await again.wait()).exitCode, 0)
})

test('a stream that is left does not disturb the process', async () => {
  const loop = 'until [ -e /tmp/enough ]; do sleep 0.02; done; echo finished'
  const handle = await shared.commands.run(loop, { background: true })
  await handle.disconnect()
  const again = await shared.commands.connect(handle.pid)
  await shared.files.write('/tmp/enough', '')
  assert.equal((await again.wait()).stdout, 'finished\n')
})

test('a repository is made, filled and asked', async () => {
  await shared.git.init('/tmp/repo', { initialBranch: 'main' })
  await shared.files.write('/tmp/repo/readme.md', 'one')
  await shared.git.add('/tmp/repo')
  const author = { authorName: 'Ann', authorEmail: 'ann@example.com' }
  await shared.git.commit('/tmp/repo', 'First', author)
  const status = await shared.git.status('/tmp/repo')
  assert.equal(status.currentBranch, 'main')
  assert.equal(status.isClean, true)
})
