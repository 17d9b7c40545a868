import { describe, expect, test } from 'vitest'
import { SECTOR_BYTES, SimulatedDisk, randomFrom } from './disk.js'
import type { Fault } from './disk.js'

const IMAGES = 300

/** Bytes with a distinct sector for each number. */
function sectorsOf(...numbers: number[]): Uint8Array {
  const bytes = new Uint8Array(numbers.length * SECTOR_BYTES)
  for (const [index, number] of numbers.entries()) {
    bytes.fill(number, index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES)
  }
  return bytes
}

/** The number of each sector, or -1 for a sector that contains bytes of several numbers. */
function numbersOf(bytes: Uint8Array): number[] {
  return Array.from({ length: Math.ceil(bytes.length / SECTOR_BYTES) }, (_, index) => {
    const sector = bytes.subarray(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES)
    return sector.every((byte) => byte === sector[0]) ? sector[0]! : -1
  })
}

async function fileOn(disk: SimulatedDisk, bytes: Uint8Array, durable: boolean) {
  const file = await disk.open('a', { create: true, durable })
  await file.write(0, bytes)
  await file.sync()
  await disk.syncDirectory()
  return file
}

/** The images of `IMAGES` power cuts as text, with the number of times that each occurred. */
function imagesOf(disk: SimulatedDisk, tell: (image: SimulatedDisk) => string): Map<string, number> {
  const seen = new Map<string, number>()
  for (let seed = 0; seed < IMAGES; seed++) {
    const text = tell(disk.crash(randomFrom(seed)))
    seen.set(text, (seen.get(text) ?? 0) + 1)
  }
  return seen
}

const sectorsIn = (image: SimulatedDisk): string => numbersOf(image.bytesOf('a')).join(' ')

describe('durability', () => {
  test('a synced or durable write is in every image', async () => {
    const disk = new SimulatedDisk()
    const file = await fileOn(disk, sectorsOf(1, 2, 3), true)
    await file.write(SECTOR_BYTES, sectorsOf(7))
    expect([...imagesOf(disk, sectorsIn)]).toEqual([['1 7 3', IMAGES]])
    const plain = await disk.open('a', {})
    await plain.write(0, sectorsOf(8, 9))
    await plain.sync()
    expect([...imagesOf(disk, sectorsIn)]).toEqual([['8 9 3', IMAGES]])
  })

  test('a power cut keeps any set of sectors of a write that was not synced', async () => {
    const disk = new SimulatedDisk()
    const file = await fileOn(disk, sectorsOf(1, 1, 1), false)
    await file.write(0, sectorsOf(2, 2, 2))
    expect(numbersOf(disk.bytesOf('a'))).toEqual([2, 2, 2])
    const seen = imagesOf(disk, sectorsIn)
    expect([...seen.keys()].sort()).toEqual([
      '1 1 1',
      '1 1 2',
      '1 2 1',
      '1 2 2',
      '2 1 1',
      '2 1 2',
      '2 2 1',
      '2 2 2',
    ])
    expect(seen.get('1 1 1')).toBeGreaterThan(IMAGES / 10)
    expect(seen.get('2 2 2')).toBeGreaterThan(IMAGES / 10)
  })

  test('a durable write is like any other until it resolves', async () => {
    const disk = new SimulatedDisk({ mode: 'queued', random: randomFrom(1) })
    const file = await disk.run(disk.open('a', { create: true, durable: true }))
    await disk.run(file.write(0, sectorsOf(1, 1)))
    await disk.run(disk.syncDirectory())
    const writing = file.write(0, sectorsOf(2, 2))
    expect([...imagesOf(disk, sectorsIn).keys()].sort()).toEqual(['1 1', '1 2', '2 1', '2 2'])
    expect(numbersOf(disk.bytesOf('a'))).toEqual([1, 1])
    await disk.run(writing)
    expect([...imagesOf(disk, sectorsIn).keys()]).toEqual(['2 2'])
  })

  test('a sync covers only the writes before its call', async () => {
    const disk = new SimulatedDisk({ mode: 'queued', random: randomFrom(1) })
    const file = await disk.run(disk.open('a', { create: true }))
    await disk.run(file.write(0, sectorsOf(1, 1)))
    await disk.run(disk.syncDirectory())
    const syncing = file.sync()
    const writing = file.write(SECTOR_BYTES, sectorsOf(3))
    await disk.run(syncing)
    await disk.run(writing)
    expect([...imagesOf(disk, sectorsIn).keys()].sort()).toEqual(['1 1', '1 3'])
  })

  test('the bytes that a file grew by are missing, zeros or junk', async () => {
    const disk = new SimulatedDisk()
    const file = await fileOn(disk, sectorsOf(1), false)
    await file.write(SECTOR_BYTES, sectorsOf(2, 2))
    const seen = [...imagesOf(disk, sectorsIn).keys()]
    for (const image of ['1', '1 0 0', '1 2 2', '1 -1 -1', '1 2 -1', '1 0 2']) expect(seen).toContain(image)
    for (const image of seen) expect(image).toMatch(/^1( (0|2|-1) (0|2|-1))?$/)
  })

  test('an older write does not overwrite a later write that is stable', async () => {
    const disk = new SimulatedDisk()
    const file = await fileOn(disk, sectorsOf(1, 1), false)
    await file.write(0, sectorsOf(2, 2))
    const durable = await disk.open('a', { durable: true })
    await durable.write(0, sectorsOf(3))
    expect([...imagesOf(disk, sectorsIn).keys()].sort()).toEqual(['3 1', '3 2'])
  })
})

describe('names', () => {
  const namesIn = (image: SimulatedDisk): string => image.names().join(' ')

  test('creations, renames and removals may be undone until the directory is synced', async () => {
    const disk = new SimulatedDisk()
    await fileOn(disk, sectorsOf(1), true)
    await (await disk.open('b', { create: true })).close()
    await disk.rename('a', 'c')
    expect(disk.names()).toEqual(['b', 'c'])
    expect([...imagesOf(disk, namesIn).keys()].sort()).toEqual(['a', 'a b', 'b c', 'c'])
    await disk.syncDirectory()
    await disk.remove('b')
    expect([...imagesOf(disk, namesIn).keys()].sort()).toEqual(['b c', 'c'])
    await disk.syncDirectory()
    expect([...imagesOf(disk, namesIn)]).toEqual([['c', IMAGES]])
    await expect(disk.rename('a', 'x')).rejects.toMatchObject({ code: 'ENOENT' })
    await expect(disk.remove('a')).rejects.toMatchObject({ code: 'ENOENT' })
    await expect(disk.open('a', {})).rejects.toMatchObject({ code: 'ENOENT' })
    await expect(disk.open('c', { create: true })).rejects.toMatchObject({ code: 'EEXIST' })
  })

  test('a synced file may still have no name', async () => {
    const disk = new SimulatedDisk()
    const file = await disk.open('a', { create: true, durable: true })
    await file.write(0, sectorsOf(1))
    await file.sync()
    expect([...imagesOf(disk, namesIn).keys()].sort()).toEqual(['', 'a'])
  })

  test('a rename over another file is all or nothing', async () => {
    const disk = new SimulatedDisk()
    await fileOn(disk, sectorsOf(1), true)
    const other = await disk.open('b', { create: true, durable: true })
    await other.write(0, sectorsOf(2))
    await disk.syncDirectory()
    await disk.rename('b', 'a')
    const seen = imagesOf(disk, (image) => `${namesIn(image)}: ${sectorsIn(image)}`)
    expect([...seen.keys()].sort()).toEqual(['a b: 1', 'a: 2'])
  })
})

describe('the end of a process', () => {
  test('keeps the writes that have landed, which remain unstable', async () => {
    const disk = new SimulatedDisk({ mode: 'queued', random: randomFrom(1) })
    const file = await disk.run(disk.open('a', { create: true }))
    await disk.run(file.write(0, sectorsOf(1, 1)))
    await disk.run(file.sync())
    await disk.run(disk.syncDirectory())
    await disk.run(file.write(0, sectorsOf(2)))
    void file.write(SECTOR_BYTES, sectorsOf(3))
    const landed = new Set<string>()
    const cut = new Set<string>()
    for (let seed = 0; seed < IMAGES; seed++) {
      const killed = disk.kill(randomFrom(seed))
      landed.add(sectorsIn(killed))
      cut.add(sectorsIn(killed.crash(randomFrom(seed + IMAGES))))
    }
    // When only the process dies, a write may be cut anywhere, even inside a sector.
    expect([...landed].sort()).toEqual(['2 -1', '2 1', '2 3'])
    expect([...cut].sort()).toEqual(['1 -1', '1 1', '1 3', '2 -1', '2 1', '2 3'])
  })

  test('a clone is equal to the disk and independent of it', async () => {
    const disk = new SimulatedDisk()
    const file = await fileOn(disk, sectorsOf(1, 1), false)
    await file.write(0, sectorsOf(2))
    const clone = disk.clone()
    await file.write(0, sectorsOf(5, 5))
    const other = await clone.open('a', { durable: true })
    await other.write(SECTOR_BYTES, sectorsOf(4))
    expect(sectorsIn(disk)).toBe('5 5')
    expect(sectorsIn(clone)).toBe('2 4')
    expect([...imagesOf(clone, sectorsIn).keys()].sort()).toEqual(['1 4', '2 4'])
  })
})

describe('faults', () => {
  const failing = (kind: string, fault: Fault) => (operation: { kind: string }) =>
    operation.kind === kind ? fault : undefined

  test('a successful sync does not make an earlier failed write or sync stable', async () => {
    for (const kind of ['write', 'sync']) {
      const disk = new SimulatedDisk()
      const file = await fileOn(disk, sectorsOf(1), false)
      disk.fault = failing(kind, { error: 'EIO' })
      const failed = (async () => {
        await file.write(0, sectorsOf(2))
        await file.sync()
      })()
      await expect(failed).rejects.toMatchObject({ code: 'EIO' })
      disk.fault = undefined
      await file.sync()
      expect(sectorsIn(disk)).toBe('2')
      expect([...imagesOf(disk, sectorsIn).keys()].sort()).toEqual(['1', '2'])
      // A new write of the same bytes makes them stable.
      await file.write(0, sectorsOf(2))
      await file.sync()
      expect([...imagesOf(disk, sectorsIn).keys()]).toEqual(['2'])
    }
  })

  test('a short write leaves its beginning on the disk; after a lie any part of the write can be lost', async () => {
    const disk = new SimulatedDisk()
    const file = await fileOn(disk, sectorsOf(1, 1), true)
    disk.fault = failing('write', { short: SECTOR_BYTES })
    await expect(file.write(0, sectorsOf(2, 2))).rejects.toThrow('512 of 1024')
    expect(sectorsIn(disk)).toBe('2 1')
    expect([...imagesOf(disk, sectorsIn).keys()].sort()).toEqual(['1 1', '2 1'])
    disk.fault = failing('write', { lie: true })
    await file.write(0, sectorsOf(3, 3))
    expect(imagesOf(disk, sectorsIn).size).toBeGreaterThan(2)
  })

  test('a full disk refuses to grow, and grows again when there is room', async () => {
    const disk = new SimulatedDisk({ capacityBytes: 3 * SECTOR_BYTES })
    const file = await fileOn(disk, sectorsOf(1, 1), false)
    expect(await disk.space()).toEqual({ freeBytes: SECTOR_BYTES, totalBytes: 3 * SECTOR_BYTES })
    await expect(file.write(SECTOR_BYTES, sectorsOf(2, 2, 2))).rejects.toMatchObject({ code: 'ENOSPC' })
    await file.write(0, sectorsOf(2, 2))
    await file.write(SECTOR_BYTES, sectorsOf(2, 2))
    const other = await disk.open('b', { create: true })
    await expect(other.write(0, Uint8Array.of(1))).rejects.toMatchObject({ code: 'ENOSPC' })
    await disk.remove('a')
    await other.write(0, sectorsOf(1, 1, 1))
    expect(disk.usedBytes).toBe(3 * SECTOR_BYTES)
  })

  test('faults are chosen by kind, number and name', async () => {
    const disk = new SimulatedDisk()
    const asked: string[] = []
    disk.fault = ({ kind, index, name }) => void asked.push(`${kind} ${index} ${name}`)
    const file = await fileOn(disk, sectorsOf(1), false)
    await file.write(0, sectorsOf(1))
    await file.close()
    await disk.remove('a')
    expect(asked).toEqual([
      'open 0 a',
      'write 0 a',
      'sync 0 a',
      'syncDirectory 0 ',
      'write 1 a',
      'remove 0 a',
    ])
    expect(disk.counts).toMatchObject({ open: 1, write: 2, sync: 1, remove: 1, read: 0 })
    expect(disk.openFiles).toBe(0)
  })
})

describe('order', () => {
  test('queued operations complete one by one, in an order that the seed draws', async () => {
    const orderOf = async (seed: number, slow = -1): Promise<string> => {
      const disk = new SimulatedDisk({ mode: 'queued', random: randomFrom(seed) })
      const file = await disk.run(disk.open('a', { create: true }))
      disk.fault = ({ kind, index }) => (kind === 'write' && index === slow ? { slow: true } : undefined)
      const done: number[] = []
      const writes = [0, 1, 2, 3].map((n) =>
        file.write(n * SECTOR_BYTES, sectorsOf(n)).then(() => done.push(n)),
      )
      expect(disk.queued).toBe(4)
      expect(done).toEqual([])
      await disk.run(Promise.all(writes))
      return done.join('')
    }
    const orders = new Set<string>()
    for (let seed = 0; seed < 100; seed++) {
      const order = await orderOf(seed)
      expect(await orderOf(seed)).toBe(order)
      orders.add(order)
      expect((await orderOf(seed, 2)).at(-1)).toBe('2')
    }
    expect(orders.size).toBeGreaterThan(20)
  })

  test('the same seed gives the same image', async () => {
    const disk = new SimulatedDisk()
    const file = await fileOn(disk, sectorsOf(1, 1), false)
    await file.write(0, sectorsOf(2, 2, 2, 2, 2, 2, 2, 2))
    let compared = 0
    for (let seed = 0; seed < 50; seed++) {
      const [one, other] = [disk.crash(randomFrom(seed)), disk.crash(randomFrom(seed))]
      expect(Buffer.compare(one.bytesOf('a'), other.bytesOf('a'))).toBe(0)
      compared++
    }
    expect(compared).toBe(50)
  })

  test('work that waits for no operation of the disk causes an error, not a hang', async () => {
    const disk = new SimulatedDisk({ mode: 'queued' })
    await expect(disk.run(new Promise(() => undefined))).rejects.toThrow('no operation is queued')
  })
})
