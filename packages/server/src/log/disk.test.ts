import { constants } from 'node:fs'
import { mkdtemp, readFile, readdir, readlink, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { EntryWriter } from '../../../../test/simulation/entries.js'
import { NodeDisk, makeDirectory } from './disk.js'
import { FileLog } from './file-log.js'
import { segmentName } from './segment.js'

let root: string

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'sluice-disk-'))
})

afterEach(async () => {
  await rm(root, { recursive: true })
})

test('a missing directory is created, for its owner only', async () => {
  const path = join(root, 'a', 'b', 'c')
  const disk = await NodeDisk.at(path)
  expect(disk.path).toBe(path)
  expect((await stat(path)).mode & 0o777).toBe(0o700)
  expect((await stat(join(root, 'a'))).mode & 0o777).toBe(0o700)
  await NodeDisk.at(path)
  const { freeBytes, totalBytes } = await disk.space()
  expect(freeBytes).toBeGreaterThan(0)
  expect(totalBytes).toBeGreaterThanOrEqual(freeBytes)
})

test.each([false, true])('written bytes are read, synced and listed (durable: %s)', async (durable) => {
  const disk = await NodeDisk.at(root)
  const file = await disk.open('one', { create: true, durable })
  expect(file.bytes).toBe(0)
  await file.write(1000, Uint8Array.of(1, 2, 3))
  await file.write(0, Uint8Array.of(9))
  expect(file.bytes).toBe(1003)
  await file.sync()
  expect([...(await file.read(999, 4))]).toEqual([0, 1, 2, 3])
  expect(await file.read(0, 0)).toHaveLength(0)
  await file.close()
  expect((await stat(join(root, 'one'))).mode & 0o777).toBe(0o600)
  await disk.rename('one', 'two')
  await disk.syncDirectory()
  expect(await disk.list()).toEqual(['two'])
  const again = await disk.open('two', {})
  expect(again.bytes).toBe(1003)
  await again.close()
  await disk.remove('two')
  expect(await disk.list()).toEqual([])
})

test.runIf(process.platform === 'linux')('only a durable file is opened with O_DSYNC', async () => {
  const disk = await NodeDisk.at(root)
  const files = [
    await disk.open('plain', { create: true }),
    await disk.open('durable', { create: true, durable: true }),
  ]
  const flags = new Map<string, number>()
  for (const descriptor of await readdir('/proc/self/fd')) {
    const target = await readlink(`/proc/self/fd/${descriptor}`).catch(() => '')
    if (!target.startsWith(`${root}/`)) continue
    const info = await readFile(`/proc/self/fdinfo/${descriptor}`, 'utf8')
    flags.set(basename(target), Number.parseInt(/flags:\s*(\d+)/.exec(info)![1]!, 8))
  }
  expect([...flags.keys()].sort()).toEqual(['durable', 'plain'])
  expect(flags.get('durable')! & constants.O_DSYNC).toBe(constants.O_DSYNC)
  expect(flags.get('plain')! & constants.O_DSYNC).toBe(0)
  for (const file of files) await file.close()
})

test('reads past the end, second creations and use after closing are errors', async () => {
  const disk = await NodeDisk.at(root)
  const file = await disk.open('one', { create: true })
  await file.write(0, new Uint8Array(10))
  await expect(file.read(5, 6)).rejects.toMatchObject({ code: 'SHORT_TRANSFER' })
  await expect(disk.open('one', { create: true })).rejects.toMatchObject({ code: 'EEXIST' })
  await expect(disk.open('none', {})).rejects.toMatchObject({ code: 'ENOENT' })
  await file.close()
  await expect(file.write(0, new Uint8Array(1))).rejects.toThrow('one is closed')
  await expect((async () => file.read(0, 1))()).rejects.toThrow('one is closed')
  await expect((async () => file.sync())()).rejects.toThrow('one is closed')
  await expect((async () => file.close())()).rejects.toThrow('one is closed')
})

test('a write to a full device is an error, not a short write', async () => {
  const disk = await NodeDisk.at('/dev')
  const file = await disk.open('full', {})
  await expect(file.write(0, new Uint8Array(8192))).rejects.toMatchObject({ code: 'ENOSPC' })
  await file.close()
})

test('no name refers to a file outside the directory', async () => {
  const disk = await NodeDisk.at(join(root, 'inner'))
  await writeFile(join(root, 'secret'), 'x')
  await symlink(join(root, 'secret'), join(root, 'inner', 'link'))
  const names = [
    '../secret',
    '/etc/passwd',
    '.',
    '..',
    '',
    'a/b',
    'a\0b',
    '.hidden',
    '-x',
    'é',
    'x'.repeat(200),
  ]
  let refused = 0
  for (const name of names) {
    await expect(disk.open(name, { create: true })).rejects.toThrow(RangeError)
    await expect(disk.remove(name)).rejects.toThrow(RangeError)
    await expect(disk.rename('link', name)).rejects.toThrow(RangeError)
    await expect(disk.rename(name, 'ok')).rejects.toThrow(RangeError)
    refused++
  }
  expect(refused).toBe(11)
  await expect(disk.open('link', {})).rejects.toMatchObject({ code: 'ELOOP' })
  expect(await disk.list()).toEqual([])
  expect(await readFile(join(root, 'secret'), 'utf8')).toBe('x')
})

test('a log on a real disk can be opened again after a close, a truncation and a torn write', async () => {
  const open = async (): Promise<{
    log: FileLog
    writer: EntryWriter
    nextLsn: number
    cutBytes: number
  }> => {
    const log = new FileLog({
      disk: await NodeDisk.at(root),
      segmentBytes: 64 * 1024,
      lowFreeBytes: 0,
      now: Date.now,
      random32: () => 77,
    })
    const bounds = await log.open()
    return { log, writer: new EntryWriter(log, bounds), ...bounds }
  }
  const first = await open()
  for (let n = 0; n < 100; n++) await first.writer.append([n * 30, 100])
  await first.log.truncateBefore(first.writer.durable[60]!.position)
  const last = first.writer.durable.at(-1)!
  await first.log.close()

  const path = join(root, segmentName(Math.floor(last.position / (64 * 1024))))
  const bytes = await readFile(path)
  bytes.fill(0, (last.position % (64 * 1024)) + 512, (last.position % (64 * 1024)) + last.bytes.length)
  await writeFile(path, bytes)

  const second = await open()
  expect(second.nextLsn).toBe(100)
  expect(second.cutBytes).toBe(last.bytes.length)
  let found = 0
  for await (const entry of second.log.read(second.log.usage().firstPosition)) {
    expect(Buffer.compare(entry.bytes, first.writer.durable[entry.lsn - 1]!.bytes)).toBe(0)
    found++
  }
  expect(found).toBeGreaterThan(38)
  await second.writer.append([1])
  await second.log.close()
})

describe('creating a directory', () => {
  test('creates its parents, and accepts an existing one', async () => {
    const deep = join(root, 'a', 'b', 'c')
    await Promise.all(Array.from({ length: 10 }, () => makeDirectory(deep)))
    await makeDirectory(deep)
    expect((await stat(deep)).isDirectory()).toBe(true)
    expect((await stat(join(root, 'a'))).mode & 0o777).toBe(0o700)
  })

  test('fails if a file has the name of one of the directories', async () => {
    await writeFile(join(root, 'file'), '')
    for (const path of [join(root, 'file'), join(root, 'file', 'below')])
      await expect(makeDirectory(path)).rejects.toMatchObject({ code: 'ENOTDIR' })
  })

  test.runIf(process.platform === 'linux')(
    'fails, and does not loop, where no directory can be created',
    async () => {
      await expect(makeDirectory('/proc/x')).rejects.toMatchObject({ code: 'ENOENT' })
      await expect(makeDirectory('/proc/x/y')).rejects.toMatchObject({ code: 'ENOENT' })
    },
  )
})
