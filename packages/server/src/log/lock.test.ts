import { SluiceError } from '@sluice/protocol'
import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
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
  throw new Error('the directory was not locked')
}

test('a second broker is refused by name until the first lets go', async () => {
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
  // The first one is done with: it must not free what is the next one's.
  await lock.release()
  expect((await refusal()).code).toBe('DATA_DIR_LOCKED')
  await next.release()
})

test('other directories are not concerned', async () => {
  const locks = await Promise.all(['a', 'b', 'c'].map((name) => lockDirectory(join(root, name))))
  expect(locks).toHaveLength(3)
  for (const lock of locks) await lock.release()
})

test('of many that start at once one gets it', async () => {
  const results = await Promise.allSettled(Array.from({ length: 20 }, () => lockDirectory(root)))
  const won = results.filter((result) => result.status === 'fulfilled')
  expect(won).toHaveLength(1)
  for (const result of results) {
    if (result.status === 'rejected') expect((result.reason as SluiceError).code).toBe('DATA_DIR_LOCKED')
  }
  await won[0]!.value.release()
})

test.runIf(isLinux)('a process that is killed frees it, and its file is no obstacle', async () => {
  // Only the socket: what the kernel frees must not depend on anything that the process does at its end.
  const { dev, ino } = await stat(root, { bigint: true })
  const child = spawn(process.execPath, [
    '-e',
    `require('net').createServer().listen({ path: '\\0sluice-${dev}-${ino}' }, () => console.log('held')); setInterval(() => 0, 1000)`,
  ])
  try {
    await new Promise<void>((resolve) => child.stdout.once('data', () => resolve()))
    await writeFile(file, `${JSON.stringify({ host: hostname(), boot: 'this', pid: child.pid })}\n`)
    const error = await refusal()
    expect(error.code).toBe('DATA_DIR_LOCKED')
    expect(error.message).toContain(`process id ${child.pid}`)
  } finally {
    child.kill('SIGKILL')
    await new Promise<void>((resolve) => child.once('close', () => resolve()))
  }
  const lock = await lockDirectory(root)
  expect(JSON.parse(await readFile(file, 'utf8'))).toMatchObject({ pid: process.pid })
  await lock.release()
})

test('a file of another host is never taken over', async () => {
  const text = JSON.stringify({ host: 'elsewhere', boot: 'b', pid: 1 })
  await writeFile(file, text)
  const error = await refusal()
  expect(error.code).toBe('DATA_DIR_LOCKED')
  expect(error.message).toContain('process id 1 on host elsewhere')
  expect(error.message).toContain(file)
  expect(await readFile(file, 'utf8')).toBe(text)
  // Neither is the socket kept.
  await rm(file)
  await (await lockDirectory(root)).release()
})

test.runIf(isLinux)(
  'files of a dead process, of an earlier start and unfinished ones are stale',
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

test('a file that somebody else put in its place is left alone', async () => {
  const lock = await lockDirectory(root)
  const text = JSON.stringify({ host: 'elsewhere', boot: 'b', pid: 1 })
  await writeFile(file, text)
  await lock.release()
  expect(await readFile(file, 'utf8')).toBe(text)
})
