/**
 * One broker a data directory. On Linux the lock is an abstract socket named after the directory's device and inode:
 * exclusive, and freed by the kernel however the process ends. The file `lock` beside the log tells people who holds
 * it, and keeps out other hosts that share the directory, which the socket cannot. A lock of another host is never
 * taken over: nothing here can know whether that host is gone.
 */
import { mkdir, open, readFile, stat, unlink } from 'node:fs/promises'
import { createServer } from 'node:net'
import type { Server } from 'node:net'
import { hostname } from 'node:os'
import { join, resolve } from 'node:path'
import { SluiceError } from '@sluice/protocol'

export const LOCK_NAME = 'lock'
/** Tries to create the file again after a stale one was removed; more means that another start races with this. */
const TRIES_MAX = 3
/** A host name, a boot id and a process id take less. */
const LOCK_BYTES_MAX = 1024

export interface DirectoryLock {
  /** Lets others have the directory. A second call does nothing. */
  release(): Promise<void>
}

interface Holder {
  readonly host: string
  /** Changes with each start of the machine; empty where the system does not tell. */
  readonly boot: string
  readonly pid: number
}

/** @throws SluiceError DATA_DIR_LOCKED naming the directory and the process that holds it */
export async function lockDirectory(path: string): Promise<DirectoryLock> {
  const directory = resolve(path)
  await mkdir(directory, { recursive: true, mode: 0o700 })
  const file = join(directory, LOCK_NAME)
  const me: Holder = { host: hostname(), boot: await bootId(), pid: process.pid }
  const socket = process.platform === 'linux' ? await bindSocket(directory, file) : undefined
  try {
    await claimFile(directory, file, me, socket !== undefined)
  } catch (error) {
    await closeSocket(socket)
    throw error
  }
  let released: Promise<void> | undefined
  return {
    release: () => (released ??= releaseBoth(file, me, socket)),
  }
}

async function bindSocket(directory: string, file: string): Promise<Server> {
  const { dev, ino } = await stat(directory, { bigint: true })
  // Whoever connects is told nothing: being there is all that this socket does.
  const server = createServer((connection) => connection.destroy())
  try {
    await new Promise<void>((done, fail) => {
      server.once('error', fail)
      server.listen({ path: `\0sluice-${dev}-${ino}` }, done)
    })
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw cause
    throw locked(directory, await readHolder(file))
  }
  return server.unref()
}

/** Writes the file, unless it names a holder that may be alive. */
async function claimFile(directory: string, file: string, me: Holder, hasSocket: boolean): Promise<void> {
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    try {
      const handle = await open(file, 'wx', 0o600)
      try {
        await handle.writeFile(`${JSON.stringify(me)}\n`)
        await handle.sync()
      } finally {
        await handle.close()
      }
      return
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'ENOSPC' && hasSocket) {
        // A broker must start on a full disk, to drain it; the socket keeps out the others on this host.
        await unlinkIfThere(file)
        return
      }
      if (code !== 'EEXIST') throw error
    }
    const holder = await readHolder(file)
    if (holder !== undefined && holder.host !== me.host) throw locked(directory, holder, file)
    // With the socket in hand no process of this host can hold it; without, a process of this start may be alive.
    if (!hasSocket && holder !== undefined && holder.boot === me.boot && isAlive(holder.pid)) {
      throw locked(directory, holder)
    }
    await unlinkIfThere(file)
  }
  throw locked(directory, await readHolder(file))
}

/** Who the file names; undefined when it is not there or was not finished. */
async function readHolder(file: string): Promise<Holder | undefined> {
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  if (text.length > LOCK_BYTES_MAX) return undefined
  try {
    const { host, boot, pid } = JSON.parse(text) as Partial<Record<keyof Holder, unknown>>
    if (typeof host === 'string' && typeof boot === 'string' && typeof pid === 'number') {
      return { host, boot, pid }
    }
  } catch {
    // Cut short by a crash, before its writer did anything else.
  }
  return undefined
}

function locked(directory: string, holder: Holder | undefined, file?: string): SluiceError {
  const who = holder === undefined ? 'Another broker' : `The broker with process id ${holder.pid}`
  const where = file === undefined ? '' : ` on host ${holder?.host}`
  const way = file === undefined ? '' : ` If that host is gone for good, remove ${file}.`
  return new SluiceError('DATA_DIR_LOCKED', `${who}${where} uses the data directory ${directory}.${way}`)
}

function isAlive(pid: number): boolean {
  // Zero and negative numbers would ask for a whole group of processes.
  if (!Number.isSafeInteger(pid) || pid <= 0) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    // It is there and belongs to somebody else.
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

async function bootId(): Promise<string> {
  try {
    return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
  } catch {
    return ''
  }
}

async function releaseBoth(file: string, me: Holder, socket: Server | undefined): Promise<void> {
  // The file goes while the socket still keeps others from writing theirs.
  const holder = await readHolder(file)
  if (holder?.pid === me.pid && holder.host === me.host && holder.boot === me.boot) await unlinkIfThere(file)
  await closeSocket(socket)
}

async function closeSocket(socket: Server | undefined): Promise<void> {
  if (socket === undefined) return
  await new Promise<void>((done, fail) => {
    socket.close((error) => (error ? fail(error) : done()))
  })
}

async function unlinkIfThere(file: string): Promise<void> {
  try {
    await unlink(file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}
