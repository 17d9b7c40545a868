import { SluiceError } from '@sluice/protocol'
import { spawn } from 'node:child_process'
import { mkdtemp, readFile, readdir, rename, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { LOCK_NAME, lockDirectory } from './lock.js'

const isLinux = process.platform === 'linux'
let root: string
let file: string

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'sluice-lock-'))
  file = join(root, LOCK_NAME)
})

afterEach(async () => {
  await rm(root, { recursive: true })
})

async function refusal(): Promise<SluiceError> {
  try {
    await (await lockDirectory(root)).release()
  } catch (error) {
    return error as SluiceError
  }
  throw new Error('The directory was not locked.')
}

test('a second broker is refused until the first releases the directory', async () => {
  const lock = await lockDirectory(root)
  expect((await stat(file)).mode & 0o777).toBe(0o600)
  expect(JSON.parse(await readFile(file, 'utf8'))).toMatchObject({ host: hostname(), pid: process.pid })
  for (let n = 0; n < 3; n++) {
    const error = await refusal()
    expect(error).toBeInstanceOf(SluiceError)
    expect(error.code).toBe('DATA_DIR_LOCKED')
    expect(error.message).toContain(root)
    expect(error.message).toContain(`process id ${process.pid}`)
  }
  await lock.release()
  await lock.release()
  await expect(stat(file)).rejects.toMatchObject({ code: 'ENOENT' })
  const next = await lockDirectory(root)
  // A second release by the first broker must not free the lock of the next one.
  await lock.release()
  expect((await refusal()).code).toBe('DATA_DIR_LOCKED')
  await next.release()
})

test('several directories can be locked at the same time', async () => {
  const locks = await Promise.all(['a', 'b', 'c'].map((name) => lockDirectory(join(root, name))))
  expect(locks).toHaveLength(3)
  for (const lock of locks) await lock.release()
})

test('exactly one of many brokers that start at once gets the lock', async () => {
  const results = await Promise.allSettled(Array.from({ length: 20 }, () => lockDirectory(root)))
  const won = results.filter((result) => result.status === 'fulfilled')
  expect(won).toHaveLength(1)
  for (const result of results) {
    if (result.status === 'rejected') expect((result.reason as SluiceError).code).toBe('DATA_DIR_LOCKED')
  }
  await won[0]!.value.release()
})

const ELSEWHERE = JSON.stringify({ host: 'elsewhere', boot: 'b', pid: 1 })

async function sockets(): Promise<string[]> {
  return (await readdir(root)).filter((name) => name.endsWith('.socket'))
}

describe.runIf(isLinux)('a socket in the directory', () => {
  async function holding(said: string): Promise<{ readonly pid: number; kill(): Promise<void> }> {
    const child = spawn(
      process.execPath,
      [
        '-e',
        `require('net').createServer((c) => c.end('${said}')).listen('lock.0000000000000000.socket', () => console.log('held')); setInterval(() => 0, 1000)`,
      ],
      { cwd: root },
    )
    await new Promise<void>((resolve) => child.stdout.once('data', () => resolve()))
    return {
      pid: child.pid!,
      kill: async () => {
        child.kill('SIGKILL')
        await new Promise<void>((resolve) => child.once('close', () => resolve()))
      },
    }
  }

  test('keeps the directory for the process that answers, without a lock file or with one that names another host', async () => {
    const child = await holding('o')
    try {
      expect((await refusal()).code).toBe('DATA_DIR_LOCKED')
      await writeFile(file, JSON.stringify({ host: 'a-container', boot: 'this', pid: 7 }))
      const error = await refusal()
      expect(error.code).toBe('DATA_DIR_LOCKED')
      expect(error.message).toContain('process id 7 on host a-container')
      await expect(lockDirectory(root, { force: true })).rejects.toMatchObject({ code: 'DATA_DIR_LOCKED' })
      // The refused brokers leave no sockets.
      expect(await sockets()).toEqual(['lock.0000000000000000.socket'])
    } finally {
      await child.kill()
    }
    const lock = await lockDirectory(root)
    expect(JSON.parse(await readFile(file, 'utf8'))).toMatchObject({ pid: process.pid })
    const left = await sockets()
    expect(left).toHaveLength(1)
    expect(left).not.toContain('lock.0000000000000000.socket')
    await lock.release()
    expect(await sockets()).toEqual([])
  })

  test('that closes each connection without an answer keeps the directory too', async () => {
    const child = await holding('')
    try {
      expect((await refusal()).code).toBe('DATA_DIR_LOCKED')
    } finally {
      await child.kill()
    }
  })

  test('of a suspended process, which does not answer, keeps the directory too', async () => {
    const child = await holding('')
    try {
      process.kill(child.pid, 'SIGSTOP')
      expect((await refusal()).code).toBe('DATA_DIR_LOCKED')
      process.kill(child.pid, 'SIGCONT')
    } finally {
      await child.kill()
    }
  })

  test('works at the end of a long path', async () => {
    const deep = join(root, ...Array.from({ length: 5 }, (_, i) => `${i}`.repeat(100)))
    const lock = await lockDirectory(deep)
    await expect(lockDirectory(deep)).rejects.toMatchObject({ code: 'DATA_DIR_LOCKED' })
    await lock.release()
  })
})

test.runIf(isLinux)('on a local file system, the file of another host or boot is stale', async () => {
  await writeFile(file, ELSEWHERE)
  const lock = await lockDirectory(root, { isLocal: true })
  expect(JSON.parse(await readFile(file, 'utf8'))).toMatchObject({ pid: process.pid })
  await lock.release()
})

describe('on a file system that other hosts can mount', () => {
  test('a file of another kernel is respected while it is renewed', async () => {
    await writeFile(file, ELSEWHERE)
    const error = await lockDirectory(root, { isLocal: false }).catch(
      (error: unknown) => error as SluiceError,
    )
    expect(error).toMatchObject({ code: 'DATA_DIR_LOCKED' })
    for (const part of ['process id 1 on host elsewhere', file, '60 s', '--force-lock'])
      expect((error as SluiceError).message).toContain(part)
    expect(await readFile(file, 'utf8')).toBe(ELSEWHERE)
    expect(await readdir(root)).toEqual([LOCK_NAME])
    const old = new Date(Date.now() - 61_000)
    await utimes(file, old, old)
    await (await lockDirectory(root, { isLocal: false })).release()
  })

  test('`force` takes over the directory of another kernel', async () => {
    await writeFile(file, ELSEWHERE)
    const lock = await lockDirectory(root, { isLocal: false, force: true })
    expect(JSON.parse(await readFile(file, 'utf8'))).toMatchObject({ pid: process.pid })
    await lock.release()
  })

  test('the owner renews its file, and notices that another host has taken it', async () => {
    let lost: (error: SluiceError) => void
    const isLost = new Promise<SluiceError>((resolve) => (lost = resolve))
    const lock = await lockDirectory(root, { isLocal: false, touchMs: 5, onLost: (error) => lost(error) })
    const old = new Date(Date.now() - 61_000)
    await utimes(file, old, old)
    while ((await stat(file)).mtimeMs < Date.now() - 60_000)
      await new Promise((resolve) => setTimeout(resolve, 5))
    await writeFile(`${file}.new`, ELSEWHERE)
    await rename(`${file}.new`, file)
    expect(await isLost).toMatchObject({ code: 'DATA_DIR_LOCKED' })
    await lock.release()
    expect(await readFile(file, 'utf8')).toBe(ELSEWHERE)
  })
})

test.runIf(isLinux)(
  'files of a dead process or an earlier boot, and incomplete files, are stale',
  async () => {
    const boot = (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
    const stale = [
      JSON.stringify({ host: hostname(), boot: 'earlier', pid: process.pid }),
      JSON.stringify({ host: hostname(), boot, pid: 2 ** 22 + 1 }),
      JSON.stringify({ host: hostname(), boot, pid: -1 }),
      '{"host":',
      '',
      '{"host":7}',
      'x'.repeat(5000),
    ]
    let taken = 0
    for (const text of stale) {
      await writeFile(file, text)
      const lock = await lockDirectory(root)
      expect(JSON.parse(await readFile(file, 'utf8'))).toMatchObject({ pid: process.pid, boot })
      await lock.release()
      taken++
    }
    expect(taken).toBe(7)
  },
)

test('releasing a lock does not remove a file that another host wrote', async () => {
  const lock = await lockDirectory(root)
  const text = JSON.stringify({ host: 'elsewhere', boot: 'b', pid: 1 })
  await writeFile(file, text)
  await lock.release()
  expect(await readFile(file, 'utf8')).toBe(text)
})
